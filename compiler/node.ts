/**
 * What the compiler has on Node: files on disk, and models by the references the command line takes.
 *
 *     import { compile, parseRecipe } from 'fettle/compiler';
 *     import { defaultCacheFolder, NodeFiles, resolveModel } from 'fettle/compiler/node';
 *
 *     const source = await resolveModel('builtin:nib', {
 *       cacheFolder: defaultCacheFolder(process.env, homedir()),
 *     });
 *     await compile(source, {
 *       targets: ['ort-wasm'],
 *       recipe: parseRecipe({ weights: 'w4g32' }),
 *       files: new NodeFiles(),
 *       out: 'bundle',
 *     });
 */
export { NodeFiles } from './node-files.ts';
export type { ResolveOptions } from './node-source.ts';
export { defaultCacheFolder, resolveModel } from './node-source.ts';
