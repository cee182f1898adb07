// What is the text of a file that was dropped? Nothing is uploaded but as part of a message.

const MAX_BYTES = 1_000_000;
const MAX_FILES = 20;

// Texts that are not UTF-8 are read as the encoding that the reader's language had before.
const FORMER = { ko: "euc-kr", zh: "gb18030", ja: "shift_jis", ru: "windows-1251" };

// Returns { files, refused }: texts by name, and a sentence for each file that is none.
export async function readFiles(list, already = 0) {
  const files = [];
  const refused = [];
  for (const file of list) {
    if (already + files.length >= MAX_FILES) {
      refused.push(`${file.name}: a message takes ${MAX_FILES} files.`);
    } else if (file.size > MAX_BYTES) {
      refused.push(`${file.name} has ${Math.ceil(file.size / 1000).toLocaleString("en")} kB; the limit is 1,000.`);
    } else {
      const text = decoded(new Uint8Array(await file.arrayBuffer()));
      if (text === null) refused.push(`${file.name} is no text.`);
      else files.push({ name: file.name, text });
    }
  }
  return { files, refused };
}

function decoded(bytes) {
  const marks = { "255,254": "utf-16le", "254,255": "utf-16be" };
  const wide = marks[bytes.slice(0, 2).join()];
  if (wide !== undefined) return new TextDecoder(wide).decode(bytes);
  if (bytes.includes(0)) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    const former = FORMER[navigator.language.slice(0, 2)] ?? "windows-1252";
    return new TextDecoder(former).decode(bytes);
  }
}
