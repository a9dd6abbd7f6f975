/**
 * Tells whether two values are computed in the same way from where they start: the layers of a model are,
 * and what has been found out about one of them holds for the others.
 */
import type { Attribute } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';

/** Attributes whose text says everything. */
const plainKinds: ReadonlySet<Attribute['kind']> = new Set([
  'int',
  'float',
  'string',
  'ints',
  'floats',
  'strings',
]);

/**
 * How a value is computed from another.
 *
 * @param nodes - what lies between
 * @returns the same text for the same way; undefined when that is not easily said
 */
export function wayOf(value: Value, source: Value, nodes: ReadonlySet<Node>): string | undefined {
  const texts = new Map<Value, string>([[source, '*']]);
  const parts: string[] = [];
  const textOf = (one: Value): string | undefined => {
    const known = texts.get(one);
    if (known !== undefined) return known;
    const { producer } = one;
    // what is no part of the way is the same only when it is the same value
    if (producer === undefined || !nodes.has(producer)) return `"${one.name}"`;
    const inputs: string[] = [];
    for (const input of producer.inputs) {
      const text = input === undefined ? '_' : textOf(input);
      if (text === undefined) return undefined;
      inputs.push(text);
    }
    const attributes: string[] = [];
    for (const [name, attribute] of producer.attributes) {
      if (!plainKinds.has(attribute.kind)) return undefined;
      attributes.push(`${name}=${String(attribute.value)}`);
    }
    parts.push(`${producer.domain}.${producer.op}{${attributes}}(${inputs})`);
    producer.outputs.forEach((output, index) => {
      if (output !== undefined) texts.set(output, `${parts.length}.${index}`);
    });
    return texts.get(one);
  };
  const end = textOf(value);
  return end === undefined ? undefined : `${parts.join(';')} ${end}`;
}
