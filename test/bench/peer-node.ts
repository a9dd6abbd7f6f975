/**
 * One measurement in a Node process of its own, so that it starts cold: JSON as the only argument, JSON on
 * stdout. `peer-hosts.ts` starts it under Node 22.
 */
import { measureLimits } from '../../compiler/cli/bench-limits.ts';
import type { MeasureSettings } from '../../compiler/cli/bench-session.ts';
import { measureSession } from '../../compiler/cli/bench-session.ts';
import type { OpenOptions } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';

/** What to do: measure the limits, or a bundle. */
export type NodeTask =
  | { readonly kind: 'limits' }
  | {
      readonly kind: 'bundle';
      readonly path: string;
      readonly open: OpenOptions;
      readonly settings: MeasureSettings;
    };

const task = JSON.parse(process.argv[2] ?? '') as NodeTask;
if (task.kind === 'limits') print(await measureLimits());
else {
  const session = await openBundle(task.path, task.open);
  print(await measureSession(session, task.settings));
  await session.dispose();
}

function print(value: object): void {
  process.stdout.write(`${JSON.stringify(value)}\n`, () => {
    // onnxruntime-web leaves its threads running
    process.exit(0);
  });
}
