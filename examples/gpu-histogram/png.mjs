/** The smallest PNG writer for grey pictures. */
import { deflateSync } from "node:zlib";

const TABLE = Int32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc(bytes) {
  let c = -1;
  for (const byte of bytes) c = TABLE[(c ^ byte) & 0xff] ^ (c >>> 8);
  return ~c;
}

function chunk(type, data) {
  const out = Buffer.alloc(12 + data.length);
  out.writeUInt32BE(data.length, 0);
  out.write(type, 4, "latin1");
  data.copy(out, 8);
  out.writeInt32BE(crc(out.subarray(4, 8 + data.length)), 8 + data.length);
  return out;
}

/** `grey`: one value from 0 to 255 for each pixel, row by row; the last row may be short. */
export function png(grey, width) {
  const height = Math.ceil(grey.length / width);
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head[8] = 8; // bits
  const rows = Buffer.alloc(height * (width + 1));
  for (let k = 0; k < grey.length; k++) rows[Math.floor(k / width) * (width + 1) + 1 + (k % width)] = grey[k];
  return Buffer.concat([
    Buffer.from("\x89PNG\r\n\x1a\n", "latin1"),
    chunk("IHDR", head),
    chunk("IDAT", deflateSync(rows)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}
