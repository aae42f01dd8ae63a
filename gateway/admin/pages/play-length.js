// Describe how the policy chose the length of the guidance, from the receipt. Pure.
import { duration, money, share, tokens } from "./format.js";

const PROBED = {
  confident: "was confident of its first token",
  unsure: "was not confident of its first token",
  no_logprobs: "was probed, but its engine returns no probabilities",
  late: "was probed, but was too late",
  failed: "was probed, but the call failed",
};

/** Return { value, more } for a figure; null if the policy did not choose the length. */
export function chosenLength(receipt) {
  const facts = receipt?.length;
  if (!facts) return null;
  const more = [`${chooser(facts)}; kind of prompt: ${facts.prompt}`];
  if (facts.ended) more.push(`it ended earlier, at the end of a ${facts.ended}`);
  if (facts.probe) more.push(probed(facts.probe, receipt.probe));
  return { value: receipt.guidance ? `${tokens(receipt.guidance.tokens)} tokens` : "no guidance", more };
}

function chooser(facts) {
  if (facts.by === "rule") return `by rule ${facts.rule}`;
  if (facts.by === "model") return `by model ${facts.model}, which predicts a correct answer with ${share(facts.score)}`;
  return "by default: no rule matches";
}

function probed(probe, cost) {
  const details = [
    probe.p1 === undefined ? null : `p1 ${probe.p1.toFixed(3)}`,
    probe.entropy === undefined ? null : `entropy ${probe.entropy.toFixed(3)}`,
    probe.ms === undefined ? null : duration(probe.ms),
    cost ? money(cost.cost_usd) : null,
  ].filter(Boolean);
  return `the student ${PROBED[probe.outcome] ?? probe.outcome}${details.length ? ` (${details.join(", ")})` : ""}`;
}
