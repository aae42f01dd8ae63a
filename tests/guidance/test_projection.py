from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounting.worst_case import added_bytes, caller_tokens
from gateway.guidance.projection import place_in_context, teacher_messages, teacher_prompt
from gateway.policy import schema
from gateway.policy.projections import PROJECTIONS, Exemplar, Shipped
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

CUTOFF, CONCISE, HINT = (PROJECTIONS[name] for name in ("cutoff", "concise", "hint"))
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


CHAT = [
    {"role": "system", "content": "Be kind."},
    user("First?"),
    {"role": "assistant", "content": "Yes."},
    user("Second?"),
]

contents = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.lists(st.one_of(st.text(max_size=5).map(text), st.just(IMAGE)), max_size=3),
)
chats = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        contents,
    ),
    max_size=4,
)


def test_the_shipped_projections_have_their_names() -> None:
    assert set(PROJECTIONS) == set(get_args(Shipped))
    assert all(name == projection.name for name, projection in PROJECTIONS.items())


def test_a_policy_that_names_no_placement_gets_the_projections_own() -> None:
    for name, projection in PROJECTIONS.items():
        assert schema.GuidanceRule.model_validate({"projection": name}).placement == projection.default_placement


def test_the_instructions_are_the_papers() -> None:
    assert CUTOFF.instruction is None
    assert CONCISE.instruction == "Provide the answer in a brief manner:"
    assert HINT.instruction == "Provide a brief hint for the question:"


def test_only_cutoff_and_concise_may_be_the_answer() -> None:
    assert [p.teacher_may_finish for p in (CUTOFF, CONCISE, HINT)] == [True, True, False]


def test_only_a_hint_has_placement_context_by_default() -> None:
    assert [p.default_placement for p in (CUTOFF, CONCISE, HINT)] == ["prefix", "prefix", "context"]


def test_projections_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PROJECTIONS["cutoff"] = HINT  # type: ignore[index]


@pytest.mark.parametrize("introduction", ["", "none", "{guidance} {guidance}"])
def test_an_introduction_contains_one_slot(introduction: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        replace(HINT, introduction=introduction)


# the teacher's chat


def test_cutoff_does_not_change_the_chat() -> None:
    assert teacher_messages(CUTOFF, CHAT) == CHAT


def test_the_instruction_stands_before_the_last_user_message() -> None:
    result = teacher_messages(CONCISE, CHAT)
    assert result == [*CHAT[:-1], user("Provide the answer in a brief manner: Second?")]


def test_the_last_user_message_need_not_be_the_last_message() -> None:
    result = teacher_messages(HINT, [*CHAT, {"role": "tool", "content": "42", "tool_call_id": "t"}])
    assert result[3] == user("Provide a brief hint for the question: Second?")
    assert result[4] == {"role": "tool", "content": "42", "tool_call_id": "t"}


def test_the_instruction_stands_before_the_first_text_part() -> None:
    result = teacher_messages(HINT, [user([IMAGE, text("What?"), text("Why?")])])
    assert result == [user([IMAGE, text("Provide a brief hint for the question: What?"), text("Why?")])]


def test_parts_without_text_get_the_instruction_before_them() -> None:
    result = teacher_messages(HINT, [user([IMAGE])])
    assert result == [user([text("Provide a brief hint for the question:"), IMAGE])]


@pytest.mark.parametrize("content", [None, "", []])
def test_an_empty_message_becomes_the_instruction(content: Any) -> None:
    (result,) = teacher_messages(HINT, [user(content)])
    expected = "Provide a brief hint for the question:"
    assert result["content"] == ([text(expected)] if content == [] else expected)


def test_a_chat_without_a_user_message_gets_one() -> None:
    assert teacher_messages(HINT, CHAT[:1]) == [CHAT[0], user("Provide a brief hint for the question:")]


def test_other_fields_of_messages_and_parts_are_kept() -> None:
    message = {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "What?", "cache_control": {"x": 1}}]}
    (result,) = teacher_messages(HINT, [message])
    assert result["name"] == "Ann"
    assert result["content"][0]["cache_control"] == {"x": 1}


# the student's chat


def test_a_hint_stands_after_the_question() -> None:
    assert place_in_context(HINT, CHAT, "Count.") == [*CHAT[:-1], user("Second?\n\nHint: Count.")]


def test_a_hint_stands_in_the_last_text_part() -> None:
    placed = place_in_context(HINT, [user([text("What?"), text("Why?"), IMAGE])], "Count.")
    assert placed == [user([text("What?"), text("Why?\n\nHint: Count."), IMAGE])]


def test_parts_without_text_get_the_hint_after_them() -> None:
    assert place_in_context(HINT, [user([IMAGE])], "Count.") == [user([IMAGE, text("Hint: Count.")])]


def test_a_chat_without_a_user_message_gets_one_with_the_hint() -> None:
    assert place_in_context(HINT, [], "Count.") == [user("Hint: Count.")]


def test_guidance_is_inserted_verbatim() -> None:
    for projection in PROJECTIONS.values():
        (placed,) = place_in_context(projection, [user("{guidance} {0}?")], "{guidance} {x} \\1")
        assert placed["content"].startswith("{guidance} {0}?\n\n")
        assert placed["content"].count("{guidance} {x} \\1") == 1


def test_empty_guidance_leaves_the_chat_as_it_is() -> None:
    assert place_in_context(HINT, CHAT, "") == CHAT


@given(chats, st.sampled_from(sorted(PROJECTIONS)))
def test_the_callers_chat_is_never_changed(chat: list[dict[str, Any]], name: str) -> None:
    before = deepcopy(chat)
    for out in (teacher_messages(PROJECTIONS[name], chat), place_in_context(PROJECTIONS[name], chat, "G")):
        assert not {id(message) for message in out} & {id(message) for message in chat}
        assert len(out) - len(chat) in (0, 1, PROJECTIONS[name].turns, PROJECTIONS[name].turns + 1)
        for message in out:
            message["content"] = "changed"
    assert chat == before


# exemplars and a system text

SHOWN = (Exemplar("One?", "1."), Exemplar("Two?", "2."))
TURNS = [user("One?"), {"role": "assistant", "content": "1."}, user("Two?"), {"role": "assistant", "content": "2."}]


def test_exemplars_are_turns_behind_the_callers_system_message() -> None:
    assert teacher_messages(replace(CUTOFF, exemplars=SHOWN), CHAT) == [CHAT[0], *TURNS, *CHAT[1:]]


def test_the_instruction_stands_in_the_callers_question_and_not_in_an_exemplar() -> None:
    result = teacher_messages(replace(CONCISE, exemplars=SHOWN), [user("Three?")])
    assert result == [*TURNS, user("Provide the answer in a brief manner: Three?")]


def test_a_chat_of_system_messages_alone_gets_no_exemplars() -> None:
    """With exemplars, the chat would end in an answer, which the teacher would continue."""
    assert teacher_messages(replace(CUTOFF, exemplars=SHOWN), CHAT[:1]) == CHAT[:1]


@pytest.mark.parametrize(
    ("begins", "becomes"),
    [
        ([], [{"role": "system", "content": "Be terse."}]),
        ([CHAT[0]], [{"role": "system", "content": "Be terse.\n\nBe kind."}]),
        ([{"role": "developer", "content": ""}], [{"role": "developer", "content": "Be terse."}]),
        (
            [{"role": "system", "content": [text("Be kind.")]}],
            [{"role": "system", "content": [text("Be terse."), text("Be kind.")]}],
        ),
    ],
)
def test_a_system_text_goes_before_the_callers_own(begins: list[Any], becomes: list[Any]) -> None:
    """There is only one system message: many templates reject a second one."""
    projection = replace(CUTOFF, system="Be terse.", exemplars=SHOWN)
    assert teacher_messages(projection, [*begins, user("Three?")]) == [*becomes, *TURNS, user("Three?")]


def test_the_student_gets_neither_exemplars_nor_system_text() -> None:
    projection = replace(HINT, system="Be terse.", exemplars=SHOWN)
    assert place_in_context(projection, CHAT, "Count.") == place_in_context(HINT, CHAT, "Count.")


def test_a_raw_prompt_has_no_turns() -> None:
    projection = replace(CONCISE, system="Be terse.", exemplars=SHOWN)
    assert teacher_prompt(projection, "Q: Three?") == "Provide the answer in a brief manner: Q: Three?"


def test_the_callers_usage_excludes_exemplars() -> None:
    projection = replace(CUTOFF, exemplars=SHOWN)
    chat = parse_chat(b'{"model": "chat", "messages": [{"role": "user", "content": "Three?"}]}')
    added = len("One?1.Two?2.") + 4 * 16
    assert added_bytes(projection, chat) == added
    assert caller_tokens(projection, chat, chat.size_bytes + added) == chat.size_bytes
    assert caller_tokens(CUTOFF, chat, 100) == 100
    prompt = parse_text_completion(b'{"model": "chat", "prompt": "Q: Three?"}')
    assert (added_bytes(projection, prompt), caller_tokens(projection, prompt, 100)) == (0, 100)


def test_the_repr_of_a_projection_contains_no_exemplar() -> None:
    """Exemplars are content and must not be logged by issue."""
    shown = repr(replace(CUTOFF, system="Be terse.", exemplars=SHOWN))
    assert not [text for text in ("Be terse", "One?", "1.") if text in shown]


def test_the_primer_has_short_answers_of_many_kinds() -> None:
    primer = PROJECTIONS["primed"].exemplars
    assert 3 <= len(primer) <= 5
    assert all(len(one.answer) < 400 for one in primer)
