/**
 * Gives a product that multiplies by an embedding table a matrix of its own, so that the norm in front of
 * the product can be folded into it and the stream turned from end to end.
 *
 *     Gather(t, i), Linear(y, t)   ->   Gather(t, i), Linear(y, t')        t' = t
 *
 * Refuses where the copy would be more than a share of all weights: turning the stream at both ends by
 * a small product costs less then. In no pipeline by itself; `rotate-spine` wants it.
 * Source: ../shared/ALGORITHMS.md B8, option A.
 */
import type { Model, Value } from '../ir/graph.ts';
import type { Pass, PassContext } from './pass.ts';

/** Options of {@link untieTables}. */
export interface UntieTablesOptions {
  /** Largest share of the bytes of all weights that a copy may take, 0..1. Default 0.1. */
  readonly share?: number;
}

/** Defaults of {@link UntieTablesOptions}. */
export const untieTablesDefaults: Required<UntieTablesOptions> = { share: 0.1 };

const RULE = 'table';

/** Makes the pass. */
export function untieTables(options: UntieTablesOptions = {}): Pass {
  const { share } = { ...untieTablesDefaults, ...options };
  return {
    name: 'untie-tables',
    options: { share },
    rules: [{ name: RULE, starts: ['Gather'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const table of tiedTables(model)) untie(model, table, share, context);
      return context.rewriter.changes > before;
    },
  };
}

/** Constants that rows are gathered from and that products are made with. */
function tiedTables(model: Model): readonly Value[] {
  return [...model.graph.constants].filter((value) => {
    const users = [...value.users.keys()];
    const isGathered = users.some((node) => node.op === 'Gather' && node.inputs[0] === value);
    return isGathered && users.some((node) => node.op !== 'Gather');
  });
}

function untie(model: Model, table: Value, share: number, context: PassContext): void {
  const { rewriter } = context;
  const { weight } = table;
  if (weight === undefined) return;
  let all = 0;
  for (const constant of model.graph.constants) all += constant.weight?.byteLength ?? 0;
  const taken = weight.byteLength / all;
  if (taken > share) {
    const percent = (part: number): string => `${(100 * part).toFixed(0)}%`;
    context.refuse(
      RULE,
      table,
      `a copy is ${percent(taken)} of the weights, more than ${percent(share)}`,
    );
    return;
  }
  const copy = rewriter.constant(`${table.name}_untied`, weight);
  const products = [...table.users.keys()].filter(({ op }) => op !== 'Gather');
  for (const node of products)
    node.inputs.forEach((input, index) => {
      if (input === table) rewriter.setInput(node, index, copy);
    });
  context.count(RULE);
}
