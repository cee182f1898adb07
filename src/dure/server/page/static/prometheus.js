// What does a text of Prometheus' form say? Names without their prefix, labels, numbers.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.{0,2000})\})? ([^ ]+)/;

export function samples(text) {
  const found = [];
  for (const line of text.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const match = SAMPLE.exec(line);
    if (match === null) continue;
    found.push({ name: match[1].replace(/^[^:]*:/, ""), labels: match[2] ?? "", value: Number(match[3]) });
  }
  return found;
}

export function sum(all, name) {
  return all.reduce((total, sample) => total + (sample.name === name ? sample.value : 0), 0);
}
