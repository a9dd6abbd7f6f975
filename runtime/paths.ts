/** Paths inside a bundle: one safe form, so that no reader has to think about escapes. */

const part = /^[A-Za-z0-9_][A-Za-z0-9._-]*$/;

/** Whether `path` is what docs/bundle.md allows: relative, `/` between plain names, no way out. */
export function isSafePath(path: string): boolean {
  return path.length <= 200 && path.split('/').every((name) => part.test(name));
}
