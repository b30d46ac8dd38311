"""The page in a real browser: it fits the window, its text stands out from its ground, it asks for nothing and complains of nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layerwise.report import figures, report
from tests.report.browser import Browser, browsing, found
from tests.report.folders import Words, evaluated, metrics, put, record

CHROMIUM = found()

CONTRAST = """
(() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const ground = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return Math.min(...[...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(e => { const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05); }));
})()
"""
"""The smallest contrast of any text, by the definition of WCAG 2."""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
def test_the_page_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = figures.thumbnail(np.zeros((1, 8, 8), dtype=np.uint8))
    monkeypatch.setattr(figures, "_encoded", lambda figure: (png, (850, 300)))
    words = Words(*["<img src=http://example.org/x onerror=alert(1)> " + "long" * 99] * 6)
    better = record(clean=96, fgsm=40, pgd_20=30)
    runs = [
        put(tmp_path / name, evaluated(words, evaluation=found), lines=metrics(words))
        for name, found in (("a" * 200, None), ("b", better))
    ]
    page = report(runs).write(tmp_path / "report")
    assert CHROMIUM is not None
    with browsing(CHROMIUM) as browser:
        for domain in ("Page", "Network", "Log", "Runtime"):
            browser.call(f"{domain}.enable")
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                look(browser, page, width, scheme)
        clicked = """(() => { const head = document.querySelector("table.sorts").tHead.rows[0].cells[2];
            const rows = () => [...document.querySelectorAll("table.sorts tbody th")].slice(0, 2).map(e => e.textContent[0]);
            head.firstChild.click(); const down = rows(); head.firstChild.click(); return [down, rows(), head.ariaSort]; })()"""
        assert browser.value(clicked) == [["b", "a"], ["a", "b"], "ascending"]
        printed = browser.call("Page.printToPDF", printBackground=True)
        assert len(printed["data"]) > 10_000
        said = [
            e
            for e in browser.events
            if e["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        ]
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert said == []
        assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def look(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait("Page.loadEventFired")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(253, 253, 252)" if scheme == "light" else "rgb(21, 24, 28)")
    assert browser.value(CONTRAST) >= 4.5
