// Where the time of one request went.

/** Stages of one request, from when it came in: [title, from, took, token]. What is left is the student's and the reply's. */
export function stages(receipt) {
  const { admission_ms: admission, batch_wait_ms: wait, teacher_ms: teacher, total_ms: total } = receipt.timings;
  const found = [];
  let at = 0;
  for (const [title, took, token] of [["Admission", admission, "--series-admission"], ["Wait for a batch", wait, "--series-wait"], ["Teacher", teacher, "--series-teacher"]]) {
    if (took === undefined || took === null) continue;
    const from = Math.min(at, total);
    found.push([title, from, Math.min(took, total - from), token, took]);
    at += took;
  }
  if (total > at) found.push([receipt.student ? "Student and reply" : "Reply", at, total - at, "--series-student", total - at]);
  return found;
}
