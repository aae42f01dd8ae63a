// The same request for callers: as curl, as Python with the OpenAI SDK, and as a route of a policy. Pure.

const KEY = "YOUR_KEY";

/** Return the request for the public listener, and notes on settings that callers may not change: { headers, body, notes }. */
export function asCaller(mode, settings, route) {
  const headers = {};
  const notes = [];
  const allowed = route.callers_may;
  if (mode !== route.mode) {
    if (allowed.modes.includes(mode)) headers["x-gkt-mode"] = mode;
    else notes.push(`callers of this route get mode ${route.mode}: its policy does not allow ${mode} (overrides.modes)`);
  }
  if (mode === "guided") {
    const own = route.guidance;
    const { tokens, projection, placement } = settings.guidance;
    if (tokens !== undefined && tokens !== own.tokens) {
      if (allowed.guidance_tokens !== null && tokens <= allowed.guidance_tokens) headers["x-gkt-guidance-tokens"] = String(tokens);
      else notes.push(`callers get ${own.tokens} tokens of guidance: the policy does not allow ${tokens} (overrides.guidance_tokens)`);
    }
    if (projection !== undefined && projection !== own.projection) notes.push(`callers cannot choose projection ${projection}; they get ${own.projection}`);
    if (placement !== undefined && placement !== own.placement) notes.push(`callers cannot choose placement ${placement}; they get ${own.placement}`);
  }
  const messages = [...(settings.system ? [{ role: "system", content: settings.system }] : []), { role: "user", content: settings.prompt }];
  return { headers, notes, body: { model: settings.model, messages, ...settings.sampling } };
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return a command for a POSIX shell. */
export function curl({ headers, body }, baseUrl) {
  const lines = [`curl -sS ${quoted(`${baseUrl}/chat/completions`)}`, `-H 'Authorization: Bearer ${KEY}'`, "-H 'Content-Type: application/json'"];
  for (const [name, value] of Object.entries(headers)) lines.push(`-H ${quoted(`${name}: ${value}`)}`);
  lines.push(`-d ${quoted(JSON.stringify(body))}`);
  return `${lines.join(" \\\n  ")}\n`;
}

/** Return Python code for the package openai. Every JSON string is a Python string. */
export function python({ headers, body, notes }, baseUrl) {
  const { model, messages, ...sampling } = body;
  const items = messages.map((one) => `        {"role": ${JSON.stringify(one.role)}, "content": ${JSON.stringify(one.content)}},`);
  const lines = [
    ...notes.map((note) => `# Differs from the playground: ${note}.`),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key="${KEY}")`,
    "reply = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    "    messages=[",
    ...items,
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

/** Return the route with these settings as YAML for the tenant's policy file. Every JSON string is a YAML string. */
export function policy({ tenant, tokens, projection, placement }, route) {
  const lines = [
    `# Policy file of tenant ${tenant}. Replace mode, engines and guidance of this route; keep its other settings.`,
    "routes:",
    `  - model: ${JSON.stringify(route.model)}`,
    `    mode: ${route.mode}`,
  ];
  if (route.teacher) lines.push(`    teacher: ${JSON.stringify(route.teacher)}`);
  if (route.students.length === 1) lines.push(`    student: ${JSON.stringify(route.students[0])}`);
  if (route.students.length > 1) lines.push("    students:", ...route.students.flatMap((one, at) => [
    `      - model: ${JSON.stringify(one)}`, ...((route.weights?.[at] ?? null) === null ? [] : [`        weight: ${route.weights[at]}`])]));
  lines.push("    guidance:", `      tokens: ${Number(tokens)}`, `      projection: ${JSON.stringify(projection)}`, `      placement: ${placement}`);
  return `${lines.join("\n")}\n`;
}
