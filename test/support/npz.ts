/** .npz archives as numpy writes them. */
import { deflateRawSync } from 'node:zlib';
import { writeNpy } from '../../models/npy.ts';
import type { Tensor } from '../../runtime/tensor.ts';

/** An archive of arrays; checksums are not read, and left 0. */
export function npzOf(arrays: Readonly<Record<string, Tensor>>, deflated: boolean): Uint8Array {
  const parts: Uint8Array[] = [];
  const entries: Uint8Array[] = [];
  let at = 0;
  for (const [name, array] of Object.entries(arrays)) {
    const path = new TextEncoder().encode(`${name}.npy`);
    const bytes = writeNpy(array);
    const stored = deflated ? new Uint8Array(deflateRawSync(bytes)) : bytes;
    const local = new Uint8Array(30);
    const entry = new Uint8Array(46);
    const head = new DataView(local.buffer);
    head.setUint32(0, 0x04034b50, true);
    head.setUint16(26, path.length, true);
    const view = new DataView(entry.buffer);
    view.setUint32(0, 0x02014b50, true);
    view.setUint16(10, deflated ? 8 : 0, true);
    view.setUint32(20, stored.length, true);
    view.setUint32(24, bytes.length, true);
    view.setUint16(28, path.length, true);
    view.setUint32(42, at, true);
    parts.push(local, path, stored);
    entries.push(entry, path);
    at += 30 + path.length + stored.length;
  }
  const end = new Uint8Array(22);
  const view = new DataView(end.buffer);
  view.setUint32(0, 0x06054b50, true);
  view.setUint16(10, Object.keys(arrays).length, true);
  view.setUint32(16, at, true);
  return new Uint8Array(Buffer.concat([...parts, ...entries, end]));
}
