"""Thresholds of the warning signs while training, of `plan` and of `diagnose`: one place for each phenomenon.

Without a source they are rules of thumb, not measurements. docs/guide.md, docs/planning.md and
docs/troubleshooting.md quote them."""

import math

# amount of data
FEW_TOKENS = 100_000  # to train on: overfitting is likely
FEW_VAL_TOKENS = 10_000  # differences of a few hundredths of a nat are chance
# (limit of tokens, model, recipe)
MODELS = [
    (1_000_000, "gpt2", "recipes/small.yaml"),
    (10_000_000, "gpt2-medium", "recipes/medium.yaml"),
    (math.inf, "gpt2-large", "recipes/large.yaml"),
]

# passes over the data
PASSES = 5  # a pretrained model should reach its lowest validation loss within them
PASSES_FROM_SCRATCH = 40  # more gain nothing (Muennighoff et al. 2023, arXiv 2305.16264)
TOKENS_PER_PARAMETER = 20  # best use of compute from scratch (Hoffmann et al. 2022, arXiv 2203.15556)

# updates
TOKENS_OF_UPDATE = (8 << 10, 64 << 10)  # usual range for pretrained weights
WANTED_UPDATES = 100  # in the chosen epochs: `train` warns below, with the sizes that make as many
FEW_UPDATES = 10  # of a planned run: too few steps for the optimizer
ENOUGH_UPDATES = 20  # of a finished run: fewer are a trial, too short to judge

# learning rate: (limit of tokens, from, to) for pretrained weights
RATES = [(1_000_000, 3e-5, 5e-5), (10_000_000, 3e-5, 1e-4), (math.inf, 1e-5, 3e-5)]
# (limit of n_embd, peak rate) from scratch: GPT-3's table (Brown et al. 2020), below it nanoGPT's for small models
RATES_FROM_SCRATCH = [(512, 1e-3), (896, 6e-4), (1152, 3e-4), (1408, 2.5e-4), (math.inf, 2e-4)]
RATES_OF_LORA = (1e-4, 5e-4)  # around recipe.LORA_RATE
LEAST_RATE, LEAST_RATE_FROM_SCRATCH = 3e-5, 3e-4  # suggested when nothing is learned

# loss at step 0, as a share of ln(vocab_size), the loss of guessing
BAD_START, BAD_START_FROM_SCRATCH = 0.9, 1.2
KNOWN_TEXT = 1.5  # nats: a lower loss is unlikely on a text that a pretrained model has not seen
KNOWN_TEXT_VOCABULARY = 10_000  # with a smaller vocabulary such a loss is normal

# validation loss that does not fall
LEAST_GAIN = 0.02  # nats, for pretrained weights: a smaller fall counts as none
LEAST_SHARE_GAINED = 0.05  # of the first loss, from scratch
PLATEAU = 5  # evaluations without a better loss
PLATEAU_GAIN, PLATEAU_RISE = 0.001, 0.01  # share of the best loss before: a smaller fall or rise is a plateau
STILL_FALLING = 0.1  # of the whole fall was in the last fifth of the run: it ended too early

# overfitting
WORSE_EVALUATIONS = 3  # since the best, while the train loss falls
GAP, GAP_AT_START = 0.3, 0.15  # nats from train to validation loss: above GAP now, below GAP_AT_START at step 0
LEAST_RISE = 0.005  # share of the best loss: a smaller rise may be chance
RISE = 0.03  # share of the best loss: a larger rise is not noise
COPIED = 0.5  # share of the n-grams of samples that are in the training data

# divergence and forgetting
DIVERGED_RISE = 0.1  # nats, of both losses, if more than RISE
FORGOTTEN = 1.0  # nats lost on a general text

# speed
LOW_MFU = 0.1  # on a GPU; 0.15 to 0.25 is typical for models of this size
SLOWER = 2.0  # time of a late update / time of an early one
ENOUGH_LINES = 4  # of the log, before the speed is judged
SHORT_RUN = 600  # seconds: no shorter run counts as slow
DAY = 86_400  # seconds; longer is slow on a CPU
LONG_RUN = 3 * DAY  # seconds; `plan` mentions it

FULL_MEMORY = 0.8  # of the computer's memory: a killed process probably ran out of it
