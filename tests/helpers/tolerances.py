"""Every tolerance of the tests, with its reason.

A test that needs another number adds it here; none is written where it is used.
"""

# Products in float64 against a dense float64 Hessian: both sides sum the same few thousand terms
# in different orders, so they agree to some hundred roundings.
DENSE64 = 1e-9

# The same where transformers computes a part in float32 whatever the weights' type is: the norms and
# the eager softmax of Llama, Qwen2 and Gemma2. Two backward passes through a handful of those.
DENSE64_FLOAT32_ISLANDS = 1e-4

# A float32 product against float64 truth: 2⁻²⁴ times the few hundred operations of a tiny model's
# two backward passes, with some cancellation.
DENSE32 = 2e-4

# λ by Lanczos run to rtol r has an error of at most the residual, and of order r² where the gap is
# open; the invariances compare two such runs.
RTOL_TIGHT = 1e-6
SAME_LAMBDA = 1e-5

# Logits after an adapter was built, against the base model's, relative, in float32: the methods
# that take a part out of W and put it back round once in each layer.
SAME_LOGITS = 1e-5

# Central differences of float64 gradients with step h have an error of h² plus 1e-16/h; h = 1e-5.
DIFFERENCES = 1e-6

# λ_P by float32 central differences against exact products at the same weights: over eight methods on tiny
# models 2.5e-3 at most, where the differences themselves claim 2e-2; what is built on it, alike.
CENTRAL_LAMBDA_P = 5e-3

# The bracket of λ at B = 0 holds in exact arithmetic; float32 on both sides leaves this.
BRACKET32 = 1e-3

# Peak-to-peak agreement of real-model λ in float32 with the closed-form bracket (percent level is
# what the bracket is used for).
REAL_MODEL = 0.01

# bfloat16 keeps 8 bits, an error of 2⁻⁹ in each factor of a product; λ averages over many of them.
BFLOAT16 = 0.02

# The closed form's estimate of λ at B = 0 aims at 10%.
CLOSED_FORM = 0.1

# Two learning rates from λ^-0.38, one λ to 10% and the other to 5%.
FAST_RATE = 0.06

# A sweep's cost from two timed steps of some milliseconds, on a machine that does other things too.
COST_FACTOR = 3

# Forty steps of LoFT in float64 against dense AdamW: small inverses, and roots of sums of squares that
# cancel, which lose half the digits of what is near zero.
ADAMW64 = 1e-7

# λ and learning rates by another order of float32 sums: Lanczos makes of 2⁻²⁴ what its gaps allow, and ten of
# Adam's steps what gradients near zero do.
RANKS32 = 1e-4

# An optimizer's step, relative, from its own roots and inverses in float64.
SAME_STEP = 1e-6

# Some float32 training steps by transformers' Trainer and by a loop that does the same: Adam's division
# makes much of rounding where gradients are small.
SAME_WEIGHTS = 1e-2
# The same of plain gradient descent, whose steps have no root of a small number in them.
SAME_STEPS = 1e-4

# What Adam's ε = 1e-8 leaves of invariances that hold for ε → 0, with gradients of about 1e-3, and
# Lanczos on matrices that are equal but for that.
ADAMS_EPSILON = 1e-2

# A sample's loss in float32, ours against the model's own: two sums of the same few terms.
SAME_LOSS = 1e-5

# λ where Lanczos was left with its default rtol on both sides, or on one against a dense truth.
DEFAULT_LAMBDA = 0.05

# A robust fit made again on another processor: two differed by 3e-9 in what follows from it.
REFITTED = 1e-6

# A float32 Ritz vector's own rounding in a residual taken with it in float64.
FLOAT32_RESIDUAL = 1e-3

# The mean of the losses at θ ± h·v against that at θ: λ·h²/2, with h about a thousandth.
CENTRAL_LOSS = 2e-5

# A range's coverage over some dozens of simulated fits, each of whose own scatters by 0.02 to 0.2.
SIMULATED_COVERAGE = 0.05

# A float32 vector's own v·v against the 1 it was made to have: 2⁻²⁴ an entry, of either sign.
ONE_NORM32 = 1e-7
