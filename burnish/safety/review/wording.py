"""Words of the review page, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES: Mapping[str, str] = {"en": "English", "zh": "中文"}
_HTML: Mapping[str, str] = {"en": "en", "zh": "zh-Hans"}

_WORDS: Mapping[str, tuple[str, str]] = {
    "title": ("Review", "人工评审"),
    "enter": ("Enter", "进入"),
    "enter_note": (
        "Open the link that burnish printed for you, or paste its token.",
        "请打开 burnish 为您打印的链接，或粘贴其中的令牌。",
    ),
    "token": ("Token", "令牌"),
    "bad_token": ("This token is not valid. A newer link may have replaced it.", "令牌无效，可能已被新的链接取代。"),
    "leave": ("Leave", "退出"),
    "judge": ("Judge", "评审"),
    "progress": ("Progress", "进度"),
    "language": ("Language", "语言"),
    "prompt": ("Prompt", "提示"),
    "pair_question": ("Which completion is better?", "哪个回答更好？"),
    "text_question": ("This text was flagged. Is it acceptable?", "这段文本被标记。可以接受吗？"),
    "completion": ("Completion", "回答"),
    "left": ("A is better", "A 更好"),
    "right": ("B is better", "B 更好"),
    "tie": ("Equally good", "一样好"),
    "approve": ("Approve", "通过"),
    "reject": ("Reject", "拒绝"),
    "skip": ("Skip", "跳过"),
    "undo": ("Undo", "撤销"),
    "rating": ("Rating", "评分"),
    "optional": ("Ratings and tags are optional.", "评分和标签可选填。"),
    "tags": ("Tags", "标签"),
    "flags": ("Flags", "标记"),
    "tag_unsafe": ("unsafe", "不安全"),
    "tag_untrue": ("untrue", "不属实"),
    "tag_off_topic": ("off topic", "跑题"),
    "tag_repetitive": ("repetitive", "重复"),
    "tag_language": ("poor language", "语言差"),
    "role_system": ("System", "系统"),
    "role_user": ("User", "用户"),
    "role_assistant": ("Assistant", "助手"),
    "role_tool": ("Tool", "工具"),
    "keys": ("Keys", "快捷键"),
    "keys_pair": (
        "A, B and T choose; 1 to 5 rates A, with Shift B.",
        "A、B、T 作出选择；1 到 5 给 A 评分，按住 Shift 给 B 评分。",
    ),
    "keys_text": ("Y approves, N rejects; 1 to 5 rates.", "Y 通过，N 拒绝；1 到 5 评分。"),
    "keys_more": (
        "Q, W, E, R and D set tags. S skips, U takes the last answer back.",
        "Q、W、E、R、D 添加标签。S 跳过，U 撤销上一个判断。",
    ),
    "empty": (
        "Nothing is left for you to judge. An item that another reviewer holds may still come back.",
        "没有待您评审的内容了。其他评审员正在看的内容之后可能会退回。",
    ),
    "check_again": ("Look again", "再看看"),
    "done_of": ("{done} of {total} done", "已完成 {done} / {total}"),
    "yours": ("{count} by you", "您完成 {count}"),
    "kind": ("Items", "内容"),
    "kind_pair": ("Pairs", "成对回答"),
    "kind_text": ("Flagged texts", "被标记的文本"),
    "done": ("Done", "已完成"),
    "total": ("All", "总数"),
    "reviewer": ("Reviewer", "评审员"),
    "judgements": ("Judgements", "判断数"),
    "agreement": ("Agreement", "一致性"),
    "agreement_none": (
        "No item was judged by two people. Start burnish review with --overlap to measure agreement.",
        "没有由两人评审过的内容。启动 burnish review 时加 --overlap 即可衡量一致性。",
    ),
    "agreement_items": ("Items judged by two or more", "由两人以上评审的内容"),
    "raw": ("Raw agreement", "原始一致率"),
    "ac1": ("Gwet's AC1", "Gwet AC1"),
    "fleiss": ("Fleiss' kappa", "Fleiss κ"),
    "cohen": ("Cohen's kappa", "Cohen κ"),
    "undefined": ("not defined: all labels are equal", "无定义：所有标签相同"),
    "interval": ("95% interval", "95% 区间"),
    "value": ("Value", "值"),
    "refused": (
        "The time for that item ended and it went to another reviewer. Here is the next one.",
        "该内容的评审时间已到，已转给其他评审员。请看下一个。",
    ),
    "back": ("Back to the review", "返回评审"),
    "bad_request": ("The form was not accepted. Load the page again.", "表单未被接受，请重新加载页面。"),
}


def page_words(language: str) -> dict[str, str]:
    """Return the words of the page in a language of ``LANGUAGES``, by key."""
    index = list(LANGUAGES).index(language)
    return {"html_language": _HTML[language], **{key: texts[index] for key, texts in _WORDS.items()}}


def preferred_language(header: str) -> str:
    """Return the language that an Accept-Language header names first; English if it names neither."""
    for part in header.lower().split(","):
        for language in LANGUAGES:
            if part.strip().startswith(language):
                return language
    return "en"
