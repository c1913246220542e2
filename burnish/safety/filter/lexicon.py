"""Words and phrases of the word layer: glin-profanity's lists, sorted into categories, and what is added to them.

The lists of the package have neither categories nor severities. The sets below name the entries that are ordinary in
some context (medicine, news, cooking, names): they get the score ``AMBIGUOUS``, below the default threshold, or are
left out where they are single characters that other words contain. Slurs are kept as digests, so that this file does
not print them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from burnish.safety.filter.normalise import fold
from burnish.system.optional_packages import installed_path

CLEAR, AMBIGUOUS = 0.9, 0.4
"""Scores of a word that is unwanted in any context, and of one that has an innocent use."""


@dataclass(frozen=True, slots=True)
class Term:
    """A word or phrase in normalised form, its category and its score.

    Attributes:
        opens: whether it counts only where no Chinese character runs into it.
        inside: whether it counts inside longer words too.
    """

    text: str
    category: str
    score: float
    opens: bool = False
    inside: bool = False


def _words(text: str) -> tuple[str, ...]:
    """Return the words of a text, between white space, or between bars where phrases have spaces."""
    return tuple(map(str.strip, text.replace("\n", "").split("|"))) if "|" in text else tuple(text.split())


_AMBIGUOUS_EN = _words(
    """
    4ss|alabama hot pocket|alaskan pipeline|anal|anus|auto erotic|autoerotic|babeland|ball gag|ball kicking|
    ball sack|bareback|barely legal|barenaked|bastinado|bbw|beaver cleaver|big black|big breasts|bimbos|birdlock|
    blonde action|blue waffle|bondage|boner|booty call|brown showers|brunette action|bs|bullet vibe|busty|butt|
    buttcheeks|camel toe|chocolate rosebuds|clitoris|clover clamps|cock|cocks|coon|coons|cum|date rape|daterape|
    deep throat|dendrophilia|dick|dingleberries|dingleberry|dirty pillows|dog style|domination|dominatrix|dommes|
    donkey punch|double penetration|dp action|dvda|ecchi|ejaculation|erotic|erotism|escort|eunuch|fecal|fingering|
    frotting|fuq|g-spot|gay sex|genitals|giant cock|girl on|girl on top|god damn|golden shower|goo girl|grope|
    group sex|guro|hand job|hard core|hardcore|hentai|hoe|homoerotic|honkey|hooker|hot carl|hot chick|how to kill|
    how to murder|huge fat|humping|incest|intercourse|jack off|jail bait|jelly donut|juggs|kinbaku|kinkster|kinky|
    knobbing|leather restraint|leather straight jacket|lemon party|lmfao|lolita|lovemaking|make me come|
    menage a trois|mf|missionary position|mound of venus|mr hands|negro|neonazi|nipple|nipples|nude|nudity|
    octopussy|omfg|orgasm|paedophile|panties|panty|pedophile|pegging|penis|pissed|pissing|playboy|pleasure chest|
    poof|poon|pornography|prince albert piercing|pubes|quim|rape|raping|rapist|rectum|retarded|reverse cowgirl|
    rimming|rosy palm|rusty trombone|s&m|sadism|santorum|scat|scissoring|semen|sex|sexo|sexy|shaved beaver|shibari|
    shota|shrimping|simp|skeet|smut|snatch|snowballing|sodomize|sodomy|spread legs|spunk|strap on|strapon|strappado|
    strip club|suck|sucks|suicide girls|sultry women|swastika|swinger|tainted love|taste my|tea bagging|threesome|
    throating|tied up|tight white|tit|tits|titty|tongue in a|topless|tosser|tribadism|twink|twinkie|undressing|
    urethra play|vagina|venus mound|vibrator|violet wand|voyeur|vulva|wet dream|white power|wrapping men|
    wrinkled starfish|wtf|xx|xxx|yaoi|zoophilia
    """
)
_AMBIGUOUS_ZH = _words(
    """
    娘的 奶奶的熊 13. 13点 个老子的 九游 乳头 乳房 交配 他奶奶 他奶奶的 他妈 他娘 他马的 你他马的 你全家 你奶奶的 你妈 你妈的
    你娘 你是鸡 你是鸭 你马的 做爱 军妓 几八 几叭 几巴 几芭 刚度 包皮 十三点 卖比 卖淫 卵子 口肯 叫床 吃屎 后庭
    吹箫 塞你老师 处女 外阴 大卵子 大卵泡 奶子 奸你 她妈地 她妈的 她马的 妈比 妈逼 妓女 妓院 妳妈的 妳娘的 妳马的
    嫖娼 嫖客 密洞 射你 射精 小卵子 小卵泡 小肉粒 小鸡鸡 屁股 巨乳 干你 干您娘 强奸 性交 性器 性无能 性爱 情色
    想上你 懒八 懒叫 懒教 成人 扒光 打炮 打飞机 招妓 插你 撒尿 操你 操妳 操比 放荡 日他娘 日你 日你妈 日批 月经
    机八 机巴 杂种 淫秽 激情 狗屁 狗日 玉杵 瓜批 白烂 白痴 祖宗 私服 笨蛋 精子 老二 老味 老母 老瘪三 肉壁 肉棒 肉缝
    肥西 色情 花柳 贝肉 贼你妈 轮奸 迷药 野鸡 阳具 阳萎 阴唇 阴核 阴毛 阴茎 阴道 阴部 靠北 靠母 靠爸 靠背 靠腰
    驶你公 驶你母 驶你爸 驶你老师 鬼公 鸡8 鸡八 鸡叭 鸡吧 鸡奸 鸡芭 鸡鸡 龟头
    """
)
_OPENS = ("妈的", "日你妈", "日他娘")
_LEFT_OUT = ("testbad01", "妈妈的", *"乳卵奶奸姦妓性淫爛賤逼幹")
_SEXUAL = _words(
    """
    porn sex blow cunni fella handjob masturb orgy orgasm dildo bdsm hentai milf nympho jizz creampie bukkake
    strapon fisting rimjob squirt vagin penis erotic bestial upskirt camgirl doggy doggie threesome footjob
    fingerbang bangbros deepthroat ejacul futanari zoophil jailbait nude nsfw 性 淫 乳 交 奸 阴 阳 精 妓 嫖 色 肛
    肉 浪 抽插
    """
)
_SLURS = _words(
    """
    022f46ba 05a68caa 0a68d9cc 222379e2 25c12c19 2b813759 3894a0eb 410a9581 439c9e24 453ee9a4 52ae9761 59b533f8
    6909ec2b 7155d165 7ce33163 929ab4be 96264586 98b53b67 bb9ec548 cc909ea9 cdf2b87b eb8cadc9 f03005e7 f3cde82b
    f3d591bb
    """
)
_ADDED = {
    "profanity": _words(
        """
        whore motherfucker horseshit chickenshit batshit goddamn goddamned douchebag scumbag skank arse bellend
        knobhead dickhead wanker 傻叉 煞笔 傻b 牛逼 牛b 逗逼 苦逼 卧槽 卧操 尼玛的 草泥马 操蛋 去你妈的 操他妈
        操你大爷 日了狗 混蛋 滚蛋 狗娘养的 王八羔子 臭婊子 死变态 狗东西 tamade gouniangyang shabi niubi wocao hundan
        gundan biaozi saohuo nmsl qnmd cnmb
        """
    ),
    "sexual": _words("cumshot gangbang gangbanged pornstar titfuck 约炮 裸聊 援交 颜射 潮吹"),
    "violence": _words(
        """
        kill yourself|kill urself|kys|i will kill you|i'll kill you|gonna kill you|going to kill you|i will murder you|
        find you and kill you|kill you all|slit your throat|cut your throat|beat you to death|burn you alive|rape you|
        rip your head off|bash your head in|stab you|hope you die|deserve to die|deserves to die|die in a fire|drop dead|
        go die|弄死你|杀了你全家|砍死你|打死你全家|你去死|去死吧|死全家|不得好死|我要杀了你
        """
    ),
}
_PHRASES = {
    "profanity": _words("screw you|piss off|you idiot|you moron|you stupid|stupid idiot|you scum"),
    "sexual": tuple(
        f"{owner} {part}"
        for owner in ("my", "your", "his", "her", "their", "hard", "huge", "throbbing")
        for part in ("cock", "dick", "tits", "boobs", "titties", "cum")
    ),
}
_INSIDE = ("fuck", "bitch", "asshole", "bullshit", "cocksuck", "dickhead")
"""Clear words that no innocent word contains, so that they count inside longer ones."""


def _digest(term: str) -> str:
    return hashlib.blake2b(term.encode(), digest_size=4).hexdigest()


def folded(term: str) -> str:
    """Return a term as texts are compared with it."""
    return fold(term).text


@lru_cache(maxsize=1)
def terms() -> tuple[Term, ...]:
    """Return the terms in both languages, read from the installed glin-profanity without running its code."""
    return tuple({term.text: term for term in _all_terms()}.values())


def _all_terms() -> Iterator[Term]:
    for language, words in (("english", _AMBIGUOUS_EN), ("chinese", _AMBIGUOUS_ZH)):
        ambiguous = frozenset(map(folded, words))
        path = installed_path(
            "glin-profanity", f"glin_profanity/data/dictionaries/{language}.json", "safety", "the content filter"
        )
        for word in json.loads(path.read_text(encoding="utf-8"))["words"]:
            if word not in _LEFT_OUT and (term := folded(word)):
                score = AMBIGUOUS if term in ambiguous else CLEAR
                yield from _inflected(Term(term, _category(term), score, word in _OPENS))
    for added in (_ADDED, _PHRASES):
        for category, words in added.items():
            for word in words:
                yield from _inflected(Term(folded(word), category, CLEAR))
    for word in _INSIDE:
        yield Term(word, "profanity", CLEAR, inside=True)


def _inflected(term: Term) -> Iterator[Term]:
    """Yield a term, and the plural of one that is a clear English word."""
    yield term
    if term.score == CLEAR and term.text.isascii() and term.text.isalpha() and len(term.text) > 2:
        ending = "es" if term.text.endswith(("s", "sh", "ch", "x", "z")) else "s"
        stem = term.text[:-1] + "ie" if term.text.endswith("y") else term.text
        yield replace(term, text=stem + ending)


def _category(term: str) -> str:
    if _digest(term) in _SLURS:
        return "slur"
    return "sexual" if any(part in term for part in _SEXUAL) else "profanity"
