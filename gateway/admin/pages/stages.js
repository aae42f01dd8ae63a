// The stages of one request.

/** Return the stages as [title, start, shown duration, color token, duration], in ms. The last stage is the remaining time. */
export function stages(receipt) {
  const { admission_ms: admission, batch_wait_ms: wait, teacher_ms: teacher, handover_ms, total_ms: total } = receipt.timings;
  const handover = teacher === undefined || teacher === null ? null : handover_ms; // without the teacher's call its start is unknown
  const parts = [];
  let at = 0;
  for (const [title, took, token] of [["Admission", admission, "--series-admission"], ["Wait for batch", wait, "--series-wait"], ["Teacher", teacher, "--series-teacher"], ["Hand-over", handover, "--series-rest"]]) {
    if (took === undefined || took === null) continue;
    const from = Math.min(at, total);
    parts.push([title, from, Math.min(took, total - from), token, took]);
    at += took;
  }
  if (total > at) parts.push([receipt.student ? "Student and reply" : "Reply", at, total - at, "--series-student", total - at]);
  return parts;
}
