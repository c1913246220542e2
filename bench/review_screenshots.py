"""Screenshots of the review page for the docs: desktop, phone, dark mode and Chinese.

    python -m bench.review_screenshots docs/images

Needs Chromium. The texts are invented.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from burnish.safety.review.database import open_database
from burnish.safety.review.store import PAIR, TEXT, TIE, Answer, ReviewItem, ReviewStore
from tests.safety.review.serving import chromium, served

ENGLISH = ReviewItem(
    PAIR, "uncertain", "Explain to a ten-year-old why the sky is blue.",
    (
        "Sunlight looks white, but it is a mix of all colours. When it meets the air, the blue part bounces around much "
        "more than the red part. So from every direction a little blue light reaches your eyes, and the sky looks blue.",
        "The sky is blue because of Rayleigh scattering, whose cross-section is proportional to the inverse fourth power "
        "of the wavelength. Blue light is blue. The sky is blue because blue light is blue.",
    ),
)  # fmt: skip
CHINESE = ReviewItem(
    PAIR, "uncertain", "请用两句话介绍一下北京的秋天。",
    (
        "北京的秋天天高云淡，香山的红叶和胡同里的银杏把城市染成金红色。早晚微凉，白天阳光温暖，是一年中最适合出门走走的时候。",
        "北京的秋天很好。北京的秋天很好，北京的秋天非常好，大家都说北京的秋天很好。",
    ),
    ({"role": "system", "content": "回答要简短。"}, {"role": "user", "content": "请用两句话介绍一下北京的秋天。"}),
)  # fmt: skip
FLAGGED = ReviewItem(
    TEXT, "flagged", "Write a reply to a customer whose parcel is late.",
    ("Stop whining. Parcels are late sometimes, and only an idiot would order on the last day.",),
    details={"flags": ["insult"]},
)  # fmt: skip
SHOTS = {
    "desktop": (ENGLISH, 1100, 720, "light", "en-GB"),
    "phone": (ENGLISH, 390, 1020, "light", "en-GB"),
    "dark": (FLAGGED, 1100, 620, "dark", "en-GB"),
    "chinese": (CHINESE, 1100, 720, "light", "zh-CN"),
}


def prepare(store: ReviewStore, item: ReviewItem) -> None:
    """Queue an item behind 17 others that are judged already, and 22 others after it."""
    others = [ReviewItem(PAIR, "random", f"Prompt {number}", ("one", "two")) for number in range(39)]
    store.add_items([*others[:17], item, *others[17:]])
    robot = store.visitor(store.add_reviewer("Bo"), "")
    assert robot is not None
    for _ in range(17):
        held = store.next_item(robot)
        assert held is not None
        store.judge(robot, held.id, Answer(TIE))


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        for name, (item, width, height, scheme, locale) in SHOTS.items():
            store = ReviewStore(open_database(Path(temporary) / f"{name}.sqlite"))
            prepare(store, item)
            with served(store) as address:
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme, locale=locale
                )
                page = context.new_page()
                page.goto(f"{address}#{store.add_reviewer('王芳' if locale == 'zh-CN' else 'Ann')}")
                page.wait_for_selector("#judge")
                page.check(f"[name=rating_left][value='{1 if item is FLAGGED else 2}']", force=True)
                page.screenshot(path=folder / f"review-{name}.png")
                context.close()
            store.engine.dispose()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
