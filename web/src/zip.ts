/* Several files as one zip, stored as they are: APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16. */

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let bit = 0; bit < 8; bit++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c >>> 0;
});

export function crc32(bytes: Uint8Array): number {
  let c = 0xffffffff;
  for (const byte of bytes) c = (TABLE[(c ^ byte) & 255] as number) ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

/** The archive of these files, by their names. */
export function zipped(files: Record<string, string>): Blob {
  const parts: Uint8Array[] = [];
  const central: Uint8Array[] = [];
  let offset = 0;
  for (const [name, text] of Object.entries(files)) {
    const encoder = new TextEncoder();
    const [path, body] = [encoder.encode(name), encoder.encode(text)];
    // Version 2.0, names in UTF-8, no compression, 1 January 1980, checksum, sizes, length of the name, no extra field.
    const about = [20, 0x0800, 0, 0, 0x21];
    const local = record(
      30 + path.length,
      0x04034b50,
      about,
      [crc32(body), body.length, body.length],
      [path.length, 0],
      path,
    );
    const entry = record(
      46 + path.length,
      0x02014b50,
      [20, ...about],
      [crc32(body), body.length, body.length],
      [path.length, 0, 0, 0, 0],
      path,
      offset,
    );
    parts.push(local, body);
    central.push(entry);
    offset += local.length + body.length;
  }
  const size = central.reduce((sum, one) => sum + one.length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, central.length, true);
  end.setUint16(10, central.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  return new Blob([...parts, ...central, new Uint8Array(end.buffer)] as BlobPart[], { type: "application/zip" });
}

/** A header: its mark, fields of two bytes, of four, of two again, and, in the central list, where the file begins. */
function record(
  length: number,
  mark: number,
  twos: number[],
  fours: number[],
  more: number[],
  path: Uint8Array,
  offset?: number,
): Uint8Array {
  const view = new DataView(new ArrayBuffer(length));
  let at = 0;
  const put = (size: 2 | 4) => (value: number) => {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  };
  put(4)(mark);
  twos.forEach(put(2));
  fours.forEach(put(4));
  more.forEach(put(2));
  if (offset !== undefined) {
    put(4)(0); // external attributes
    put(4)(offset);
  }
  const bytes = new Uint8Array(view.buffer);
  bytes.set(path, at);
  return bytes;
}
