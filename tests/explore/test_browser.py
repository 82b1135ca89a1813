"""The page in a browser: by mouse, finger and keyboard it says what the library says."""

import pytest
from browser import Browser, find_browser

from foveal.explore.families import FAMILIES

READY = "Boolean(window.explorer)"
MIDDLE = "(() => { const b = document.getElementById('%s').getBoundingClientRect();"
MIDDLE += " return [b.x + b.width * 0.6, b.y + b.height / 2, b.height]; })()"


@pytest.fixture(scope="module")
def shown(tmp_path_factory, page_text):
    """(browser, address of the page)."""
    program = find_browser()
    if program is None:
        pytest.skip("Chromium is not installed")
    folder = tmp_path_factory.mktemp("browser")
    path = folder / "page.html"
    path.write_text(page_text, encoding="utf-8")
    browser = Browser(program, folder / "profile")
    yield browser, path.as_uri()
    browser.close()


def go(browser, address):
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=address)
    browser.wait(f"location.href.startsWith('file') && {READY}")


def says(browser):
    return browser.run("document.querySelector('#readout dd').textContent")


def at(browser):
    return browser.run("explorer.state.at")


def test_the_page_in_a_browser(shown):
    """Each pattern can be chosen; mouse, finger and keys work; the address restores it all."""
    browser, address = shown
    browser.screen(1280, 800)
    go(browser, address)
    for family in FAMILIES:
        browser.run(
            f"(() => {{ const s = document.getElementById('family'); s.value = {family.name!r};"
            " s.dispatchEvent(new Event('change')); })()"
        )
        pattern, length = family.pattern(next(family.choices()))
        costs = browser.run(
            "[...document.querySelectorAll('#costs td[data-value]')].map(e => +e.dataset.value)"
        )
        assert costs[0] == pattern.num_pairs(length)
        assert costs[1] == pattern.num_queries(length) * length * (pattern.heads or 1)
        query = at(browser)
        row = pattern.mask(pattern.num_queries(length), length)[..., query, :]
        row = row if row.ndim == 1 else row[0]
        assert f"reads {int(row.sum()):,} of {length} keys" in says(browser)

    go(browser, address + "#pattern=SlidingWindow&window=8&at=40&length=64&causal=False")
    assert (at(browser), browser.run("document.getElementById('option-window').value")) == (
        40,
        "8",
    )
    x, y, _ = browser.run(MIDDLE % "mask")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert says(browser).startswith("Query 3")  # only pointed at
    assert at(browser) == 40
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    chosen = at(browser)
    assert 28 <= chosen <= 34
    browser.run("document.getElementById('mask').focus()")
    for key, found in (("ArrowDown", chosen + 1), ("ArrowUp", chosen), ("End", 63), ("Home", 0)):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert at(browser) == found
    assert "at=0" in browser.run("location.hash")

    # nonsense in an address does no harm
    go(browser, address + "#pattern=<img src=x>&at=-1e9&window=__proto__&show=constructor&head=99")
    assert browser.run("explorer.state.family.name") == FAMILIES[0].name
    assert browser.errors == []


def test_the_page_on_a_phone_in_the_dark(shown):
    """A tap on the image chooses a pixel; nothing is wider than the screen; colours follow."""
    browser, address = shown
    browser.screen(390, 844, touch=True)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", features=dark)
    go(browser, address + "#pattern=Halo&show=shards&at=3")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 25, 31)"
    browser.run("document.getElementById('image').scrollIntoView({block: 'center'})")
    x, y, _ = browser.run(MIDDLE % "image")
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    query = at(browser)
    assert query != 3
    pattern, length = next(f for f in FAMILIES if f.name == "Halo").pattern(
        next(next(f for f in FAMILIES if f.name == "Halo").choices())
    )
    assert f"reads {int(pattern.mask(length)[query].sum())} of" in says(browser)
    small = "[...document.querySelectorAll('select, button, fieldset label')].filter(e =>"
    small += " e.getClientRects().length && e.getBoundingClientRect().height < 43.5).length"
    assert browser.run(small) == 0
    assert browser.errors == []
