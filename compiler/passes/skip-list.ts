/** Skip lists of passes: names, or patterns in which `*` stands for any text. */

/**
 * Whether one of the names is on a skip list.
 *
 * @param names - what a thing is called: its own name, the nodes that read it
 * @param patterns - `lm_head.weight`, `model.layers.0.*`, `*norm*`
 */
export function isSkipped(names: readonly string[], patterns: readonly string[]): boolean {
  return patterns.some((pattern) => {
    const escaped = pattern.replace(/[.+?^${}()|[\]\\]/g, String.raw`\$&`).replaceAll('*', '.*');
    const expression = new RegExp(`^${escaped}$`);
    return names.some((name) => expression.test(name));
  });
}
