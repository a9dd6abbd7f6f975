/**
 * The stable text form of a model, for `--dump`, golden tests and reading. `parse.ts` reads it back.
 *
 *     graph nib (ids: i64[batch, seq]) -> (logits: f32[batch, seq, 4096]) {
 *       opset 17
 *       const %table: f32[4096, 192] = random(1)
 *       %x: f32[batch, seq, 192] = Gather(%table, %ids) {axis = 0} @embed
 *       …
 *     }
 *
 * Names that are no plain words are quoted. `_` is an absent input or output, `?` an unknown dtype, no
 * brackets an unknown rank. A node's name follows `@`. Ints have no decimal point, floats have one.
 * Documentation strings and metadata are not printed.
 */
import type { Attribute } from './attribute.ts';
import type { Graph, Model, Node, Value } from './graph.ts';
import { contentsText, encodeBase64, numberText } from './text-contents.ts';
import type { Weight } from './weight.ts';

/** Options of {@link printModel}. */
export interface PrintOptions {
  /** Writes every constant in full, so that the text can always be read back. Default false. */
  readonly everything?: boolean;
}

/** A model as text; ends with a newline. */
export function printModel(model: Model, options: PrintOptions = {}): string {
  const printer = new Printer(options.everything ?? false);
  const opsets = [...model.opsets]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([domain, version]) => `  opset ${domain === '' ? '' : `${word(domain)} `}${version}`);
  return `${printer.graph(model.graph, '', opsets)}\n`;
}

/** One node as text, subgraphs included. */
export function printNode(node: Node): string {
  return new Printer(false).node(node, '');
}

class Printer {
  private readonly everything: boolean;

  constructor(everything: boolean) {
    this.everything = everything;
  }

  graph(graph: Graph, indent: string, header: readonly string[]): string {
    const inputs = graph.inputs.map((value) => word(value.name) + typeText(value));
    const outputs = graph.outputs.map((value) => word(value.name) + typeText(value));
    const inner = `${indent}  `;
    const lines = [
      ...header,
      ...[...graph.constants].map((value) => `${inner}const ${this.constant(value)}`),
      ...[...graph.nodes()].map((node) => inner + this.node(node, inner)),
    ];
    const name = graph.name === '' ? '' : `${word(graph.name)} `;
    return `graph ${name}(${inputs.join(', ')}) -> (${outputs.join(', ')}) {\n${lines.join('\n')}\n${indent}}`;
  }

  node(node: Node, indent: string): string {
    const outputs = node.outputs.map((value) => (value === undefined ? '_' : definition(value)));
    const inputs = node.inputs.map((value) => (value === undefined ? '_' : reference(value)));
    const op = node.domain === '' ? word(node.op) : `${word(node.domain)}::${word(node.op)}`;
    const overload = node.overload === '' ? '' : `:${word(node.overload)}`;
    const call = `${op}${overload}(${inputs.join(', ')})`;
    const left = outputs.length === 0 ? '' : `${outputs.join(', ')} = `;
    const name = node.name === '' ? '' : ` @${word(node.name)}`;
    return `${left}${call}${this.attributes(node, indent)}${name}`;
  }

  private attributes(node: Node, indent: string): string {
    if (node.attributes.size === 0) return '';
    const texts = [...node.attributes].map(
      ([name, attribute]) => `${word(name)} = ${this.attribute(attribute, indent)}`,
    );
    return ` {${texts.join(', ')}}`;
  }

  private attribute(attribute: Attribute, indent: string): string {
    switch (attribute.kind) {
      case 'int':
        return String(attribute.value);
      case 'float':
        return floatText(attribute.value);
      case 'string':
        return JSON.stringify(attribute.value);
      case 'tensor':
        return this.tensor(attribute.value);
      case 'graph':
        return this.graph(attribute.value, indent, []);
      case 'opaque':
        return `opaque("${encodeBase64(attribute.value)}")`;
      case 'ints':
        return list('ints', attribute.value.map(String));
      case 'floats':
        return list('floats', attribute.value.map(floatText));
      case 'strings':
        return list(
          'strings',
          attribute.value.map((text) => JSON.stringify(text)),
        );
      case 'tensors':
        return list(
          'tensors',
          attribute.value.map((weight) => this.tensor(weight)),
        );
      case 'graphs':
        return list(
          'graphs',
          attribute.value.map((graph) => this.graph(graph, indent, [])),
        );
    }
  }

  private constant(value: Value): string {
    return value.weight === undefined
      ? `${definition(value)} = ?`
      : `%${word(value.name)}: ${this.tensor(value.weight, ' = ')}`;
  }

  private tensor(weight: Weight, separator = ' '): string {
    const type = `${weight.dtype}[${weight.shape.join(', ')}]`;
    return `${type}${separator}${contentsText(weight, this.everything)}`;
  }
}

/** A list; an empty one says of what. */
function list(kind: string, texts: readonly string[]): string {
  return texts.length === 0 ? `${kind}[]` : `[${texts.join(', ')}]`;
}

function definition(value: Value): string {
  return reference(value) + typeText(value);
}

function reference(value: Value): string {
  return `%${word(value.name)}`;
}

function typeText(value: Value): string {
  if (value.opaqueType !== undefined) return `: opaque("${encodeBase64(value.opaqueType)}")`;
  const { dtype, shape } = value;
  return `: ${dtype ?? '?'}${shape === undefined ? '' : `[${shape.join(', ')}]`}`;
}

/** Bare when that reads back as one word. */
function word(text: string): string {
  return /^(?!_$|\/\/)[A-Za-z_/][\w./-]*$/.test(text) ? text : JSON.stringify(text);
}

/** Always with a point, an exponent or a word, so that it is no int. */
function floatText(value: number): string {
  const text = numberText(value);
  return /^-?\d+$/.test(text) ? `${text}.0` : text;
}
