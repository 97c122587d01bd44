"""The front end by itself: keys, late answers, refusals, and a table of 32,768 latents.

The host is scripted, so that a test decides when an answer comes; `test_lab` has the real kernel.
"""

import json

import pytest
from helpers.browser import CHROMIUM, module_page, offline_page, running_chromium
from helpers.scripted_host import SCRIPTED_HOST

from saelib.show.explore import frontend

pytest.importorskip("playwright", reason="Playwright is not installed: `make browser` installs it")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive")

LARGE = 32_768
# Milliseconds until what an action changed is painted.
PAINTED = """(action) => new Promise((resolve) => {
  const begun = performance.now();
  new Function(action)();
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begun), 0));
})"""


@pytest.fixture(scope="module")
def chromium():
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def opened(chromium):
    """Opens the front end; at the end the console must be without errors."""
    errors = []
    pages = []

    def open_page(n_latents=200, **state):
        page = offline_page(chromium, errors)
        pages.append(page)
        given = f"window.nLatents = {n_latents}; window.state = {json.dumps(state)};"
        page.set_content(
            module_page(f"{given}\n{frontend.script()}\n{SCRIPTED_HOST}", frontend.style())
        )
        page.locator(".sae-page h3").wait_for()
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert errors == []


def hold(page, kind):
    page.evaluate("(kind) => held.add(kind)", kind)


def release(page, kind):
    page.evaluate("(kind) => release(kind)", kind)


def search(page, text):
    page.locator("input[type=search]").fill(text)
    return page.locator(".sae-left > .sae-faint").inner_text()


def wait_for_latent(page, latent):
    page.locator(f"h3[data-latent='{latent}']").wait_for()


def choose(page, latent):
    search(page, str(latent))
    page.locator("input[type=search]").press("Enter")


def test_it_opens_with_a_latent_that_is_neither_rare_nor_dense(opened):
    page = opened()
    latent = int(page.locator("h3[data-latent]").get_attribute("data-latent"))
    density = page.evaluate("(n) => browser.data.columns.density[n]", latent)
    assert 2e-3 < density < 4e-3
    assert page.locator(f".sae-chosen[data-latent='{latent}']").is_visible()
    wait_for_latent(opened(latent=13), 13)


def test_keys_search_step_open_and_lead_back(opened):
    page = opened()
    page.locator(".sae-scroller").focus()
    page.keyboard.press("/")
    page.keyboard.type("1945")
    assert page.evaluate("browser.state.query") == "1945"
    page.keyboard.press("Escape")
    listed = page.evaluate("browser.table.order.slice(0, 3)")
    page.evaluate("browser.openLatent(browser.table.order[0])")
    wait_for_latent(page, listed[0])
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    wait_for_latent(page, listed[2])
    page.keyboard.press("k")
    wait_for_latent(page, listed[1])
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.className") == "sae-page"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "sae-scroller"


def test_letters_typed_into_a_field_are_text_and_not_keys(opened):
    page = opened()
    latent = page.evaluate("browser.state.latent")
    page.locator("textarea[aria-label=note]").click()
    page.keyboard.type("j/k")
    assert page.locator("textarea[aria-label=note]").input_value() == "j/k"
    assert page.evaluate("browser.state.latent") == latent


def test_a_search_finds_tokens_and_a_number_its_latent_too(opened):
    page = opened()
    assert search(page, "BOLD") == "50 of 200 latents"
    assert search(page, "no such") == "0 of 200 latents"
    assert search(page, "17") == "1 of 200 latents"
    assert search(page, "19") == "51 of 200 latents"  # those of ‘1945’, and the dead latent 19
    choose(page, 250)
    alert = page.locator(".sae-message[role=alert]")
    alert.wait_for()
    assert alert.inner_text() == "There is no latent 250: this SAE has the latents 0 to 199."


def test_limits_are_counted_and_can_be_taken_away(opened):
    page = opened()
    page.locator("summary", has_text="limits").click()
    page.locator("input[aria-label='smallest: share of tokens']").fill("0.05")
    kept = page.evaluate("browser.table.order.map((row) => browser.data.columns.density[row])")
    assert 0 < len(kept) < 180
    assert min(kept) >= 0.05
    assert page.locator("summary", has_text="limits (1)").is_visible()
    page.get_by_role("button", name="no limits").click()
    assert page.locator(".sae-left > .sae-faint").inner_text() == "180 of 200 latents"


@pytest.mark.parametrize(("show", "count"), [("dead", 20), ("revived", 4), ("all", 200)])
def test_the_dead_and_the_revived_can_be_listed(opened, show, count):
    page = opened()
    page.locator("select[aria-label='which latents']").select_option(show)
    assert page.locator(".sae-left > .sae-faint").inner_text() == f"{count} of 200 latents"


def test_undefined_values_come_last_in_either_direction(opened):
    page = opened(show="all")
    for _ in range(2):
        page.locator("button[data-column=concentration]").click()
        last = page.evaluate("browser.table.order.slice(-20)")
        assert all(row % 10 == 9 for row in last)


def test_an_answer_about_a_latent_that_was_left_is_dropped(opened):
    page = opened(latent=1, view="steer")
    hold(page, "steer")
    page.locator("button[data-action=steer]").click()
    page.get_by_text("working …").wait_for()
    choose(page, 2)
    page.get_by_text("Steer latent 2").wait_for()
    release(page, "steer")
    page.wait_for_timeout(100)
    assert page.locator("p[data-kl]").count() == 0
    assert page.locator(".sae-message").inner_text() == ""
    page.evaluate("held.clear()")
    page.locator("button[data-action=steer]").click()
    page.get_by_text("loud 2").wait_for()


def test_nothing_is_said_to_be_waited_for_once_the_reader_has_gone_on(opened):
    page = opened(latent=1)
    hold(page, "twins")
    page.evaluate("document.querySelector('[data-action=twins]').click(); browser.openLatent(2)")
    wait_for_latent(page, 2)
    page.wait_for_timeout(400)
    assert page.locator(".sae-message").inner_text() == ""


def test_steps_are_counted_even_while_the_kernel_is_slow(opened):
    page = opened()
    listed = page.evaluate("browser.table.order.slice(0, 4)")
    page.evaluate("browser.openLatent(browser.table.order[0])")
    wait_for_latent(page, listed[0])
    hold(page, "latent")
    page.locator(".sae-scroller").focus()
    for _ in range(3):
        page.keyboard.press("j")
    assert page.locator(".sae-chosen").get_attribute("data-latent") == str(listed[3])
    for _ in range(3):
        release(page, "latent")
    wait_for_latent(page, listed[3])


def test_of_two_latents_asked_for_the_later_is_shown_whichever_answer_comes_first(opened):
    page = opened(latent=1)
    hold(page, "latent")
    choose(page, 2)
    choose(page, 3)
    page.evaluate("waiting.reverse()")
    release(page, "latent")
    wait_for_latent(page, 3)
    release(page, "latent")
    page.wait_for_timeout(100)
    assert page.evaluate("browser.record.latent") == 3


def test_a_refusal_is_one_sentence_and_the_page_stays_usable(opened):
    page = opened(view="text")
    page.locator("button[data-view=text]").click()
    page.locator("button[data-action=text]").click()
    alert = page.locator(".sae-message[role=alert]")
    alert.wait_for()
    assert alert.inner_text() == "text = '': no tokens"
    page.locator("textarea[aria-label='your text']").fill("In May 1945")
    page.locator("button[data-action=text]").click()
    page.locator(".sae-seen").nth(2).wait_for()
    assert page.locator(".sae-message").get_attribute("role") == "status"


def test_own_text_is_coloured_by_the_leading_latent_or_the_open_one(opened):
    page = opened(latent=7)
    page.locator("button[data-view=text]").click()
    page.locator("textarea[aria-label='your text']").fill("In May 1945")
    page.locator("button[data-action=text]").click()
    token = page.locator(".sae-seen").nth(2)
    shade = "(span) => span.style.getPropertyValue('--share')"
    assert token.evaluate(shade) == "25%"  # 0.5 of 2
    page.locator("select[data-action=colour]").select_option("true")
    assert token.evaluate(shade) == "100%"
    assert "sae-grey" in page.locator(".sae-seen").first.get_attribute("class")
    assert page.get_by_text("Greyed: ‘In’").is_visible()
    token.click()
    assert page.get_by_text("The SAE misses 25 % of this token.").is_visible()
    page.get_by_role("button", name="12 ‘").click()
    wait_for_latent(page, 12)


def test_another_sae_has_its_own_latents_and_its_warnings_stay(opened):
    page = opened()
    page.locator("button[data-view=text]").click()
    page.locator("textarea[aria-label='your text']").fill("In May 1945")
    page.locator("button[data-action=text]").click()
    page.locator(".sae-seen").nth(2).wait_for()
    page.locator("select[aria-label=SAE]").select_option("1")
    page.get_by_text("a warning").wait_for()
    assert page.evaluate("watched.at(-1).subject") == 1
    page.locator("button[data-view=text]").click()
    page.locator(".sae-seen").nth(2).wait_for()  # read anew, by the other SAE
    assert page.evaluate("browser.pages.text.seen.subject") == 1


def test_a_state_from_outside_is_followed(opened):
    page = opened()
    page.evaluate("follow({ subject: 0, latent: 33 })")
    wait_for_latent(page, 33)
    page.evaluate("follow({ subject: 1, latent: 34 })")
    wait_for_latent(page, 34)
    assert page.evaluate("[browser.state.subject, browser.about.name]") == [1, "SAE 1"]


def test_a_note_puts_its_latent_on_a_list(opened):
    page = opened(latent=20)
    page.locator("textarea[aria-label=note]").fill("of May")
    page.locator("input[aria-label=lists]").fill("months, mine")
    page.locator("button[data-action=note]").click()
    page.get_by_text("note saved").wait_for()
    page.locator("select[aria-label='which latents']").select_option("list: months")
    assert page.locator(".sae-left > .sae-faint").inner_text() == "1 of 200 latents"


def test_twins_and_ablation_are_asked_for_and_compared(opened):
    page = opened(latent=3)
    page.locator("button[data-action=ablate]").click()
    page.get_by_text("lowers the loss of the next token by 0.0100 nats").wait_for()
    page.locator("button[data-action=twins]").click()
    page.get_by_role("button", name="compare", exact=True).click()
    page.locator("[data-compared]").nth(1).wait_for()
    shown = [side.get_attribute("data-compared") for side in page.locator("[data-compared]").all()]
    assert shown == ["3", "4"]
    page.locator("input[aria-label='other latent']").fill("9999")
    page.locator("button[data-action=compare]").click()
    page.get_by_text("There is no latent 9999: that SAE has the latents 0 to 199.").wait_for()


def test_the_table_gets_a_column_once_twins_are_found(opened):
    page = opened(latent=3)
    column = page.locator("button[data-column=twin]")
    assert column.count() == 0
    page.locator("button[data-action=twins]").click()
    column.wait_for()
    assert page.locator(".sae-chosen[data-latent='3']").is_visible()
    page.get_by_role("button", name="compare", exact=True).wait_for()


def test_a_latent_is_compared_with_its_twin_unless_another_is_named(opened):
    page = opened(latent=3)
    compared = page.locator("[data-compared]")
    page.locator("button[data-view=compare]").click()
    compared.nth(1).wait_for()
    assert compared.nth(1).get_attribute("data-compared") == "1"  # the nearest direction
    page.locator("button[data-view=latent]").click()
    page.locator("button[data-action=twins]").click()
    page.get_by_role("button", name="compare", exact=True).wait_for()
    page.locator("button[data-view=compare]").click()
    page.locator("[data-compared='4']").wait_for()


def test_a_latent_without_a_twin_is_said_to_have_none(opened):
    page = opened(latent=5)
    page.locator("button[data-action=twins]").click()
    page.get_by_text("None of 2 other SAEs has a latent like it.").wait_for()


def test_an_sae_without_a_column_that_another_has_can_be_chosen(opened):
    page = opened(latent=3)
    page.locator("select[aria-label=SAE]").select_option("1")
    page.locator("button[data-column=twin]").wait_for()
    page.locator("select[aria-label=SAE]").select_option("0")
    page.locator("button[data-column=twin]").wait_for(state="detached")
    assert page.locator(".sae-rows .sae-row").count() > 0
    wait_for_latent(page, int(page.locator(".sae-chosen").get_attribute("data-latent")))


def test_a_table_of_32_768_latents_is_sorted_filtered_and_scrolled_at_once(opened):
    page = opened(LARGE)
    assert page.locator(".sae-rows .sae-row").count() < 80
    actions = {
        "sort": "document.querySelector('button[data-column=density]').click()",
        "sort back": "document.querySelector('button[data-column=density]').click()",
        "search": "browser.table.choose({ query: 'may' })",
        "limit": "browser.table.choose({ ranges: { density: [0.01, null] } })",
        "scroll": "browser.table.scroller.scrollTop = 400000",
        "open": "document.querySelectorAll('.sae-rows .sae-row')[9].click()",
    }
    times = {name: page.evaluate(PAINTED, action) for name, action in actions.items()}
    print(", ".join(f"{name} {ms:.0f} ms" for name, ms in times.items()))
    assert max(times.values()) < 300 * 4  # the target is 300; a busy machine may take longer
