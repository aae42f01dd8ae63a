// What a caller sends to get the same: as curl, and as Python with the OpenAI SDK. Pure.

const KEY = "YOUR_KEY";

/** What is asked of the callers' listener, and what a caller may not ask for: { headers, body, notes }. */
export function asCaller(mode, wish, route) {
  const headers = {};
  const notes = [];
  const may = route.callers_may;
  if (mode !== route.mode) {
    if (may.modes.includes(mode)) headers["x-gkt-mode"] = mode;
    else notes.push(`callers of this route get mode ${route.mode}: its policy lets none ask for ${mode} (overrides.modes)`);
  }
  if (mode === "guided") {
    const own = route.guidance;
    const { tokens, projection, placement } = wish.guidance;
    if (tokens !== undefined && tokens !== own.tokens) {
      if (may.guidance_tokens !== null && tokens <= may.guidance_tokens) headers["x-gkt-guidance-tokens"] = String(tokens);
      else notes.push(`callers get ${own.tokens === "auto" ? "the length that the policy chooses (guidance.tokens: auto)" : `${own.tokens} tokens of guidance`}: the policy lets none ask for ${tokens} (overrides.guidance_tokens)`);
    }
    if (projection !== undefined && projection !== own.projection) notes.push(`projection ${projection} is for the policy to say; callers get ${own.projection}`);
    if (placement !== undefined && placement !== own.placement) notes.push(`placement ${placement} is for the policy to say; callers get ${own.placement}`);
  }
  const messages = [...(wish.system ? [{ role: "system", content: wish.system }] : []), { role: "user", content: wish.prompt }];
  return { headers, notes, body: { model: wish.model, messages, ...wish.sampling } };
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** For a POSIX shell. */
export function curl({ headers, body }, baseUrl) {
  const lines = [`curl -sS ${quoted(`${baseUrl}/chat/completions`)}`, `-H 'Authorization: Bearer ${KEY}'`, "-H 'Content-Type: application/json'"];
  for (const [name, value] of Object.entries(headers)) lines.push(`-H ${quoted(`${name}: ${value}`)}`);
  lines.push(`-d ${quoted(JSON.stringify(body))}`);
  return `${lines.join(" \\\n  ")}\n`;
}

/** For Python; needs the package openai. A JSON string is a Python string, too. */
export function python({ headers, body, notes }, baseUrl) {
  const { model, messages, ...sampling } = body;
  const said = messages.map((one) => `        {"role": ${JSON.stringify(one.role)}, "content": ${JSON.stringify(one.content)}},`);
  const lines = [
    ...notes.map((note) => `# Not as in the playground: ${note}.`),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key="${KEY}")`,
    "reply = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    "    messages=[",
    ...said,
    "    ],",
    ...Object.entries(sampling).map(([name, value]) => `    ${name}=${value},`),
  ];
  if (Object.keys(headers).length) {
    const all = Object.entries(headers).map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
    lines.push(`    extra_headers={${all.join(", ")}},`);
  }
  lines.push(")", "print(reply.choices[0].message.content)");
  return `${lines.join("\n")}\n`;
}
