/* The data of the page: the index is unpacked at the start, conversations on demand. */
const UNPACKED = 6; // chunks kept in memory
let index = null;
const chunks = new Map(); // the last unpacked chunks, by number

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

async function openIndex() {
  index = await unpack(byId("index").textContent);
  index.byRef = new Map(index.episodes.map((row) => [row.ref, row]));
  index.byId = new Map(index.episodes.map((row) => [row.id, row]));
}

const packedChunks = () => document.getElementsByClassName("chunk");

async function chunk(number) {
  if (!chunks.has(number)) {
    if (chunks.size >= UNPACKED) chunks.delete(chunks.keys().next().value);
    chunks.set(number, unpack(packedChunks()[number].textContent));
  }
  return chunks.get(number);
}

function restored(text, texts) {
  if (typeof text !== "number") return text;
  return text < 0 ? index.texts[-1 - text] : texts[text];
}

/* The conversation of an episode with its shared texts restored; null if the page lacks it. */
async function conversation(row) {
  if (row.chunk === null) return null;
  const held = await chunk(row.chunk);
  const found = held.episodes[row.id];
  for (const entry of found.entries) {
    entry.text = restored(entry.text, held.texts);
    for (const call of entry.calls || []) call.result = restored(call.result, held.texts);
  }
  return found;
}

/* The text of every episode in lower case, chunk by chunk. */
async function* searchable() {
  for (let number = 0; number < packedChunks().length; number++) {
    const held = await unpack(packedChunks()[number].textContent);
    for (const [id, found] of Object.entries(held.episodes)) {
      const parts = [];
      for (const entry of found.entries) {
        parts.push(restored(entry.text, held.texts), entry.reasoning || "", entry.own_calls || "");
        for (const call of entry.calls || []) parts.push(call.name, call.arguments, restored(call.result, held.texts) || "");
      }
      yield [id, parts.join("\n").toLowerCase(), number];
    }
  }
}
