// What the programs share: read the plan of ../programs.py, play it, and print the results.
import { text } from "node:stream/consumers";

export async function readPlan() {
  console.log("ready");
  return JSON.parse(await text(process.stdin));
}

async function outcomes(entries, describe) {
  const seen = await Promise.all(
    entries.map(async ([name, act]) => {
      try {
        return [name, { value: (await act()) ?? null }];
      } catch (error) {
        return [name, describe(error)];
      }
    }),
  );
  return Object.fromEntries(seen);
}

export async function play(plan, scenarios, refuse, describe) {
  const questions = Object.entries(plan.questions).map(([name, question]) => [name, () => scenarios[name](question)]);
  const [played, refusals] = await Promise.all([
    outcomes(questions, describe),
    outcomes(plan.refusals.map((refusal) => [refusal.name, () => refuse(refusal)]), describe),
  ]);
  console.log(JSON.stringify({ scenarios: played, refusals }));
}
