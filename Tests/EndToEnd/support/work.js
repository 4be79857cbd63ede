// Large objects, maps and buffers; prints a hash of all of it: work.js SEED ENTRIES
const crypto = require('crypto');
let state = BigInt(process.argv[2]) & 0xffffffffffffffffn;
const entries = Number(process.argv[3]);
function next() {
  state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
  return Number(state >> 33n);
}
const map = new Map();
const buffers = [];
for (let i = 0; i < entries; i++) {
  map.set(`key${i}`, { number: next(), text: `${next().toString(16)}-${'swap'.repeat(i % 30)}`, list: [i, next(), next()] });
  if (i % 200 === 0) buffers.push(Buffer.alloc(16384, next() & 255));
  if (i % 5 === 4) map.delete(`key${i - 3}`);
}
const hash = crypto.createHash('sha256');
const sorted = [...map.entries()].sort((a, b) => a[1].number - b[1].number || (a[0] < b[0] ? -1 : 1));
for (const [key, value] of sorted) hash.update(key + JSON.stringify(value));
for (const buffer of buffers) hash.update(buffer);
for (let i = 0; i < entries / 4; i++) {
  const value = map.get(`key${next() % entries}`);
  hash.update(value ? value.text : 'none');
}
console.log(map.size, buffers.length, hash.digest('hex'));
