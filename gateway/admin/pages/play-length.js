// How the length of the guidance was chosen, where the policy chooses it: what the receipt says, in words. Pure.
import { duration, money, share, tokens } from "./format.js";

const PROBED = {
  confident: "was sure of its first token",
  unsure: "was not sure of its first token",
  no_logprobs: "was asked first, and its engine tells no probabilities",
  late: "was asked first, and was too late",
  failed: "was asked first, and failed",
};

/** { value, more } for a figure; null where nobody chose. */
export function chosenLength(receipt) {
  const facts = receipt?.length;
  if (!facts) return null;
  const more = [`${chooser(facts)}; the question was taken for: ${facts.prompt}`];
  if (facts.ended) more.push(`it ended before that, with a ${facts.ended}`);
  if (facts.probe) more.push(probed(facts.probe, receipt.probe));
  return { value: receipt.guidance ? `${tokens(receipt.guidance.tokens)} tokens` : "no guidance", more };
}

function chooser(facts) {
  if (facts.by === "rule") return `by rule ${facts.rule}`;
  if (facts.by === "model") return `by model ${facts.model}, to which a right answer is ${share(facts.score)} likely`;
  return "by default, for no rule holds";
}

function probed(probe, cost) {
  const found = [
    probe.p1 === undefined ? null : `p1 ${probe.p1.toFixed(3)}`,
    probe.entropy === undefined ? null : `entropy ${probe.entropy.toFixed(3)}`,
    probe.ms === undefined ? null : duration(probe.ms),
    cost ? money(cost.cost_usd) : null,
  ].filter(Boolean);
  return `the student ${PROBED[probe.outcome] ?? probe.outcome}${found.length ? ` (${found.join(", ")})` : ""}`;
}
