// What comes while an answer is made? Server-sent events of a chat completion, one object after another.

import { request, ServerError } from "./api.js";

// Yields the JSON of each event until the stream is over. Throws ServerError for an error in its midst.
export async function* chatEvents(body, signal) {
  const asked = {
    ...body,
    stream: true,
    return_progress: true,
    stream_options: { include_usage: true },
  };
  const response = await request("v1/chat/completions", { body: asked, signal });
  for await (const data of dataLines(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(String(event.error.message ?? event.error), response.status);
    yield event;
  }
  throw new ServerError("The server ended the answer before its end.", 0);
}

// The texts behind "data:"; comments, which keep the connection alive, are passed over.
async function* dataLines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
