"""The browser of an SAE's features: in the notebook, and as a page that needs no kernel.

records, session, relations    what is shown, as plain values; questions and answers
widget                         live, in JupyterLab
frontend, browser*.js, .css    the page that both draw: one module, one style
static                         HTML without script, as batch runs leave it
notes, export                  what a reader keeps
"""

from saelib.show.explore.opened import explore, nearest_l0

__all__ = ["explore", "nearest_l0"]
