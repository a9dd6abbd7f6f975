/** Runs a written bundle on its own engine, for canaries. */
import { openBundle } from '../../runtime/node.ts';
import type { BundleRunner } from '../emit/expected.ts';

/** Opens the bundle in a folder and runs it on each set of inputs. */
export const runBundle: BundleRunner = async (folder, inputs, signal) => {
  const session = await openBundle(folder, signal === undefined ? {} : { signal });
  try {
    const outputs = [];
    for (const feeds of inputs)
      outputs.push(new Map(Object.entries(await session.run(Object.fromEntries(feeds)))));
    return outputs;
  } finally {
    await session.dispose();
  }
};
