/** `fettle report`: bundles side by side, as HTML, Markdown or JSON. */
import { extname } from 'node:path';
import { FettleError } from '../../runtime/errors.ts';
import { openBundle } from '../../runtime/node.ts';
import { writeFile } from '../files.ts';
import { NodeFiles } from '../node.ts';
import { reportHtml } from '../report/html.ts';
import { reportMarkdown } from '../report/markdown.ts';
import type { BundleReport } from '../report/report.ts';
import { reportBundle } from '../report/report.ts';
import { warmRun } from './bench.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { bundlePath } from './opening.ts';

const writers: Readonly<Record<string, (bundles: readonly BundleReport[]) => string>> = {
  '.html': reportHtml,
  '.md': reportMarkdown,
  '.json': (bundles) => `${JSON.stringify({ bundles }, undefined, 2)}\n`,
};

/** Writes a report. */
export const report: Command = command({
  usage: 'report <bundle..>',
  summary: 'write a size, memory and latency report',
  options: (parser) =>
    parser
      .positional('bundle', {
        type: 'string',
        array: true,
        demandOption: true,
        describe: 'bundles',
      })
      .option('out', { type: 'string', demandOption: true, describe: 'report.html, .md or .json' })
      .option('measure', {
        type: 'boolean',
        default: true,
        describe: 'run each bundle for its times',
      }),
  run: async (args, output) => {
    const write = writers[extname(args.out)];
    if (write === undefined)
      throw new FettleError('USAGE', `--out ${args.out}: the ending says what to write.`, {
        at: { option: 'out' },
        fix: `Use one of ${Object.keys(writers).join(', ')}.`,
      });
    const bundles: BundleReport[] = [];
    for (const [index, reference] of args.bundle.entries()) {
      output.progress('report', index, args.bundle.length);
      const session = await openBundle(bundlePath(reference), { signal: output.signal });
      try {
        if (args.measure) await warmRun(session, output.signal);
        const measured = args.measure ? session.measure() : undefined;
        bundles.push(reportBundle(reference, session.manifest, measured));
      } finally {
        await session.dispose();
      }
    }
    writeFile(new NodeFiles(), args.out, new TextEncoder().encode(write(bundles)));
    output.result({ out: args.out, bundles }, `Wrote ${args.out}: ${bundles.length} bundles.`);
  },
});
