# Made by `make notebooks` from content/what-the-critic-brings.md: edit that.


class Average:
    """A running mean of an agent's weights: `model`, after each rollout."""

    def __init__(self, share=0.15):
        self.share, self.model = share, None

    def __call__(self, run, history=(), at_once=False):
        """Take in the newest weights; `train` calls this to save a Run."""
        new = run.agent.model
        if self.model is None:
            self.model = new
        elif not at_once:  # that is the last Run once more
            mean = self.model.items()
            self.model = {k: w + self.share * (new[k] - w) for k, w in mean}
