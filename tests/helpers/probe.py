"""A page of the test's own in the place of the browser's: it asks the kernel what it is told to.

The cell of `CELL` shows a `FeatureBrowser` with it; `ask` puts one question and times the answer.
"""

PROBE = """
export default {
  render({ model, el }) {
    const waiting = new Map();
    let last = 0;
    model.on("msg:custom", (answer, buffers) => {
      waiting.get(answer.id)?.({ answer, sizes: (buffers ?? []).map((b) => b.byteLength) });
      waiting.delete(answer.id);
    });
    window.askKernel = (kind, question) => new Promise((resolve) => {
      const begun = performance.now();
      last += 1;
      waiting.set(last, (got) => resolve({ ...got, ms: performance.now() - begun }));
      model.send({ id: last, kind, ...question });
    });
    window.kernelState = () => model.get("state");
    window.setKernelState = (state) => { model.set("state", state); model.save_changes(); };
    window.kernelSubjects = () => model.get("subjects");
    el.className = "probe-ready";
    el.textContent = "probe";
  },
};
"""
CELL = f"""
from saelib.show.explore.widget import FeatureBrowser

class Probe(FeatureBrowser):
    _esm = {PROBE!r}
"""


def wait_for_probe(page, timeout=120_000):
    """Until the probe is drawn."""
    page.locator(".probe-ready").wait_for(timeout=timeout)


def ask(page, kind, **question):
    """The answer {id, reply or error}, sizes of its buffers, and the milliseconds it took."""
    return page.evaluate("([kind, question]) => askKernel(kind, question)", [kind, question])


def reply(page, kind, **question):
    """What the kernel replied; an error fails."""
    got = ask(page, kind, **question)
    assert "error" not in got["answer"], got["answer"]["error"]
    return got["answer"]["reply"]


def refusal(page, kind, **question):
    """The sentence with which the kernel refused."""
    return ask(page, kind, **question)["answer"]["error"]
