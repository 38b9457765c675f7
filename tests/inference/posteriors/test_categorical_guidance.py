"""What r says of a factorised categorical step, and the posteriors that it leads to, against enumeration."""

from dataclasses import dataclass, field
from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import smc, tempered
from dpm_ppl.inference.posteriors import categorical_guidance, guidance
from dpm_ppl.inference.posteriors.conditioning import Target
from dpm_ppl.inference.posteriors.twists import widened
from tests.oracles import worst

T, SIZE, K = 5, 4, 4
STATES = np.array(list(product(range(K), repeat=SIZE)))
HOT = np.eye(K)[STATES]  # (256, SIZE, K)
RNG = np.random.default_rng(0)
LOGITS, SLOPE = RNG.normal(size=(2, SIZE, K))
PAIR = RNG.normal(size=(K, K))
TABLE = RNG.normal(size=(T + 1, SIZE, K))
BEFORE = RNG.normal(size=(T + 1, K, K))  # what the letter before says of the next
STRINGS = np.array([[0, 1, 2, 0], [1, 1, 0, 2], [2, 0, 1, 1], [0, 2, 2, 1], [1, 0, 0, 0]])
P = dist.Categorical(logits=LOGITS).to_event(1)


def of(slope, x):
    return jnp.asarray(slope)[jnp.arange(SIZE), x].sum(-1)


def factorised(x):
    return of(SLOPE, x)


def normalised(weight):
    return weight / weight.sum(-1, keepdims=True)


# One step.


def test_the_product_with_a_factorised_r_is_exact():
    log_mean, move = categorical_guidance.product(P, factorised, None)
    weight = np.exp(P.log_prob(STATES) + factorised(STATES))
    np.testing.assert_allclose(log_mean, np.log(weight.sum()), rtol=1e-9)
    marginals = np.einsum("s,sik->ik", normalised(weight), HOT)
    np.testing.assert_allclose(jax.nn.softmax(move.logits), marginals, rtol=1e-9)
    np.testing.assert_allclose(jax.nn.softmax(move.unguided), jax.nn.softmax(LOGITS), rtol=1e-9)


def test_many_letters_are_substituted_in_groups_and_none_is_left_out():
    slope, logits = np.linspace(-2.0, 3.0, 150).reshape(10, 3, 5), np.cos(np.arange(150.0)).reshape(10, 3, 5)
    p = dist.Categorical(probs=normalised(np.exp(logits))).to_event(2)
    log_mean, move = categorical_guidance.product(p, lambda x: jnp.sum(slope * jax.nn.one_hot(x, 5)), None)
    expected = normalised(np.exp(logits)) * np.exp(slope)
    np.testing.assert_allclose(log_mean, np.log(expected.sum(-1)).sum(), rtol=1e-9)
    np.testing.assert_allclose(jax.nn.softmax(move.logits), normalised(expected), rtol=1e-9)


def test_known_letters_are_kept_and_their_probability_counted():
    known = jnp.array([True, False, False, True]), jnp.array([3, 0, 0, 1])
    log_mean, move = categorical_guidance.product(P, factorised, known)
    weight = np.exp(P.log_prob(STATES)) * (STATES[:, 0] == 3) * (STATES[:, 3] == 1)  # r of what is known too
    weight = weight * np.exp(factorised(STATES))
    np.testing.assert_allclose(log_mean, np.log(weight.sum()), rtol=1e-9)
    for logits, letters in ((move.logits, HOT), (move.unguided[::3], HOT[:, ::3])):
        marginals = np.einsum("s,sik->ik", normalised(weight), letters)
        np.testing.assert_allclose(jax.nn.softmax(logits), marginals, rtol=1e-9)


def test_a_known_letter_that_cannot_be_has_no_weight_and_leaves_the_rest_as_they_are():
    probs = np.array([[0.0, 0.3, 0.7], [0.2, 0.5, 0.3]])
    p = dist.Categorical(
        logits=jnp.where(probs > 0, jnp.log(jnp.maximum(probs, 1e-9)), jnp.finfo(float).min / 4)
    ).to_event(1)
    known = jnp.array([True, False]), jnp.array([0, 0])  # "cannot be" is a finite number, as in kernels

    @jax.jit
    def run():
        log_mean, move = categorical_guidance.product(p, lambda x: 0.5 * x[1], known)
        return log_mean, move.logits, *jax.vmap(move.draw)(jax.random.split(jax.random.key(0), 20))

    log_mean, logits, x, log_ratio = run()
    rest = np.log(probs[1] @ np.exp(0.5 * np.arange(3)))
    np.testing.assert_allclose(log_mean, categorical_guidance.LEAST_KNOWN + rest)  # positive, as twists are
    np.testing.assert_allclose(jax.nn.softmax(logits[1]), normalised(probs[1] * np.exp(0.5 * np.arange(3))))
    assert (x[:, 0] == 0).all()
    assert (log_ratio == -jnp.inf).all()


def test_an_impossible_likeliest_state_still_finds_possible_ones():
    p = dist.Categorical(logits=np.array([[0.0, 1.0, -1.0]] * 3)).to_event(1)
    log_mean, move = categorical_guidance.product(p, lambda x: jnp.where((x == 2).sum() == 1, 0.0, -jnp.inf), None)
    assert np.isfinite(log_mean)
    assert (move.logits.argmax(-1) == 2).all()


def test_a_users_kernel_of_documented_closed_forms_is_guided():
    assert guidance.predicting(averaging(Finite(), WALK)) is categorical_guidance


# The prediction of x^0: steps that are averages of a kernel's posterior over a table of x^0.

RATES = np.array([0.2, 0.25, 1 / 3, 0.5, 1.0])
RING = 0.6 * np.roll(np.eye(K), 1, 1) + 0.1 * np.roll(np.eye(K), -1, 1) + 0.3 * np.roll(np.eye(K), 2, 1)
SHARE = normalised(np.exp(LOGITS))


def redrawn(probs, rates=RATES):
    return np.stack([np.eye(K), *((1 - b) * np.eye(K) + b * np.asarray(probs) for b in rates)])


WALK = np.stack([np.eye(K), *((1 - b) * np.eye(K) + b * RING for b in RATES / 2)])


@dataclass(frozen=True, eq=False)
class Finite:
    """A kernel of a user's own over letters: steps by tables, here of a walk round a ring, and the closed forms."""

    steps: np.ndarray = field(default_factory=lambda: WALK)
    event_shape: tuple = (SIZE,)
    num_steps: int = T

    def stationary(self):
        return dist.Categorical(probs=jnp.full((SIZE, K), 1 / K)).to_event(1)

    def step(self, x, t):
        return self._letters(self.steps, x, t)

    def marginal(self, x0, t):
        return self._letters(many(self.steps), x0, t)

    def posterior(self, x0, xt, t):
        x0, xt, t = jnp.broadcast_arrays(x0, xt, jnp.asarray(t)[..., None])
        return dist.Categorical(probs=jnp.asarray(backward(self.steps))[t, xt, x0]).to_event(1)

    def _letters(self, table, x, t):
        return dist.Categorical(probs=jnp.asarray(table)[jnp.asarray(t)[..., None], x]).to_event(1)


def many(steps):
    """q(x^t | x^0), shape (T + 1, x^0, x^t)."""
    total = [np.eye(K)]
    for step in steps[1:]:
        total.append(total[-1] @ step)
    return np.stack(total)


def backward(steps):
    """q(x^(t-1) | x^t, x^0), shape (T + 1, x^t, x^0, x^(t-1)), by Bayes' rule; zeros where x^0 cannot lead to x^t."""
    before = np.concatenate([many(steps)[:1], many(steps)[:-1]])
    joint = np.einsum("tkj,tjx->txkj", before, steps)
    total = joint.sum(-1, keepdims=True)
    return joint / np.where(total > 0, total, 1.0)


def kernel(probs):
    return dpm.CategoricalKernel(dpm.schedules.constant_fraction(T), (SIZE,), probs)


PROBS = {"uniform": (0.25,) * 4, "given": (0.4, 0.3, 0.2, 0.1), "absorbing": (0.0, 0.0, 0.0, 1.0)}
KERNELS = {name: (kernel(probs), redrawn(probs)) for name, probs in PROBS.items()} | {"own walk": (Finite(), WALK)}


def averaging(forward, steps):
    """A chain whose steps average the posterior over x^0 of probabilities SHARE, those that cannot be left out."""

    def reverse(x, t):
        at = jnp.asarray(t)[..., None], x
        share = SHARE * (jnp.asarray(many(steps)).mT[at] > 0)
        probs = jnp.einsum("...k,...kj->...j", share / share.sum(-1, keepdims=True), jnp.asarray(backward(steps))[at])
        return dist.Categorical(probs=probs).to_event(1)

    return dpm.Diffusion(forward, reverse, lambda x: reverse(x, jnp.ones((), int)))


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_is_guided_as_enumeration_over_the_datum_says(name):
    forward, steps = KERNELS[name]
    diffusion = averaging(forward, steps)
    at = jax.jit(lambda x, t: categorical_guidance.posterior_step(Target(diffusion, factorised, None), x, t))
    for t, x in ((2, [0, 1, 3, 2]), (4, [3, 3, 1, 0]), (5, [3, 3, 3, 3])):
        reach, post = many(steps)[t][:, x].T, backward(steps)[t, x]
        share = normalised(SHARE * (reach > 0))
        predicted = 0.95 * share + 0.05 * normalised(reach)
        weight = predicted * np.exp(SLOPE)
        p, guided = (np.einsum("ik,ikj->ij", a, post) for a in (share, normalised(weight)))
        over = np.einsum("ik,ikj->ij", predicted, post)
        log_mean, move = at(jnp.asarray(x), jnp.asarray(t))
        np.testing.assert_allclose(log_mean, np.log(weight.sum(-1)).sum(), rtol=1e-6)
        got = np.asarray(jax.nn.softmax(move.logits))
        np.testing.assert_allclose(got, normalised(p * guided / np.where(over > 0, over, 1)), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(got, guided, atol=0.05)  # but for the floor, the average over the guided x^0
        np.testing.assert_allclose(jax.nn.softmax(move.unguided), p, rtol=1e-6, atol=1e-12)


KNOWN = jnp.array([True, False, True, False])


def step_given(diffusion, letters, x, t):
    """The twist and the guided step where the first and third letter are known."""
    target = Target(diffusion, factorised, (KNOWN, jnp.asarray(letters)))
    log_r, move = jax.jit(lambda x: categorical_guidance.posterior_step(target, x, jnp.asarray(t)))(jnp.asarray(x))
    return log_r, np.asarray(jax.nn.softmax(move.logits)), np.asarray(jax.nn.softmax(move.unguided))


def test_a_known_letter_takes_all_of_the_guided_datum():
    forward, steps = KERNELS["given"]
    x, t, letters = np.array([0, 1, 3, 2]), 3, np.array([2, 0, 0, 1])
    log_r, got, _ = step_given(averaging(forward, steps), letters, x, t)
    weight = (0.95 * SHARE + 0.05 * normalised(many(steps)[t][:, x].T)) * np.exp(SLOPE)
    weight = np.where(KNOWN[:, None] & (letters[:, None] != np.arange(K)), 0.0, weight)
    np.testing.assert_allclose(log_r, np.log(weight.sum(-1)).sum(), rtol=1e-6)
    certain = backward(steps)[t, x, letters]
    np.testing.assert_allclose(got[::2], certain[::2], atol=0.05)  # but for the floor
    assert np.abs(got - certain)[1::2].max() > 0.1


def test_a_known_letter_that_cannot_have_led_here_leaves_its_step_unguided():
    diffusion, least = averaging(*KERNELS["absorbing"]), categorical_guidance.LEAST_KNOWN
    possible, here = (step_given(diffusion, [1, 0, 2, 1], x, 3) for x in ([1, 3, 3, 3], [2, 3, 3, 3]))
    np.testing.assert_allclose(possible[0] - here[0], SLOPE[0, 1] - SLOPE[0, 1] - least, rtol=1e-6)
    np.testing.assert_allclose(here[1][0], [0, 0, 1, 0], atol=1e-12)  # a letter that is no mask stays
    np.testing.assert_allclose(here[1][2, :2], 0.0, atol=1e-12)  # the mask leads to the known letter, or stays
    assert here[1][2, 2] > here[2][2, 2] + 0.1


def test_a_known_letter_that_the_model_alone_leads_to_is_counted_as_often_as_it_goes_astray():
    """Under an absorbing kernel a letter is kept; a model that changes one in ten may yet find the known one."""
    forward, steps = KERNELS["absorbing"]
    exact = averaging(forward, steps)

    def astray(x, t):
        return dist.Categorical(probs=0.9 * exact.reverse(x, t).base_dist.probs + 0.1 / K).to_event(1)

    x, letters = [2, 3, 3, 3], [1, 0, 2, 1]
    at, kept = (step_given(dpm.Diffusion(forward, f, exact.decode), letters, x, 3) for f in (astray, exact.reverse))
    np.testing.assert_allclose(at[0], kept[0] - categorical_guidance.LEAST_KNOWN + np.log(0.1 * 3 / 4), atol=0.3)


@pytest.mark.parametrize("x64", [True, False])
def test_a_step_that_no_datum_explains_is_left_as_it_is_where_r_says_nothing(x64):
    """Steps by a table of their own, through a kernel that nearly keeps, nearly forgets and halves in turn."""
    with jax.enable_x64(x64):
        table = jnp.asarray(3.0 * TABLE, float)

        def reverse(x, t):
            return dist.Categorical(logits=table[t] + jnp.zeros((*x.shape, 1))).to_event(1)

        def at(probs):
            forward = dpm.CategoricalKernel([0.01, 0.01, 0.999999, 0.5, 1.0], (SIZE,), probs)
            target = Target(dpm.Diffusion(forward, reverse), lambda x: jnp.full((), 0.7), None)
            x = jnp.array([0, 3, 1, 3])
            return jax.vmap(lambda t: categorical_guidance.posterior_step(target, x, t))(jnp.arange(2, T + 1))

        for log_r, move in jax.jit(lambda: [at(probs) for probs in PROBS.values()])():
            np.testing.assert_allclose(log_r, 0.7, rtol=1e-5)
            expected = jax.nn.softmax(table[2:])
            np.testing.assert_allclose(jax.nn.softmax(move.logits), expected, rtol=1e-3, atol=1e-6)
            assert move.logits.dtype == log_r.dtype == table.dtype


# The whole chain, its 256 states enumerated: factorised steps by Bayes' rule for five strings with wrong letters now
# and then, and a shift of their logits that is wrong at every step, and so no exact reverse.

WRONG = 0.2


def chain(probs):
    forward = kernel(probs)
    tables = jnp.asarray(many(redrawn(probs)) + 1e-9).mT
    letters = 0.7 * np.eye(K)[STRINGS] + 0.3 * SHARE  # of each string, (5, SIZE, K)

    def reverse(x, t):
        at = jnp.asarray(t)[..., None], x
        joint = letters * tables[at][..., None, :, :]
        each = joint.sum(-1, keepdims=True)
        string = each.prod(-2, keepdims=True)
        bayes = (string / string.sum(-3, keepdims=True) * joint / each).sum(-3)
        shift = WRONG * (jnp.asarray(TABLE)[at[0][..., 0]] + jnp.asarray(BEFORE)[at[0], jnp.roll(x, 1, -1)])
        return dpm.outputs.data_categorical(forward, x, t, jnp.log(bayes + 1e-6) + shift)

    return dpm.Diffusion(forward, reverse, (lambda x: reverse(x, jnp.ones((), int))) if 0.0 in probs else None)


def log_r(x, strength, couple):
    """Factorised where `couple` is 0."""
    return of(strength * SLOPE, x) + couple * jnp.asarray(PAIR)[x[..., :-1], x[..., 1:]].sum(-1)


NOWHERE = np.zeros(SIZE, bool)
NUM = 300
CASES = {
    "factorised": (3.0, 0.0, NOWHERE, STRINGS[0]),
    "coupled": (8.0, 1.0, NOWHERE, STRINGS[0]),
    "two known and coupled": (3.0, 1.0, np.array([False, True, False, True]), np.array([0, 2, 0, 2])),
}


def transitions(diffusion):
    """Probabilities between the 256 states, of the steps T..1, each (from, to), and those of x^T."""

    @jax.jit
    def every():
        steps = [diffusion.reverse(jnp.asarray(STATES), jnp.asarray(t)) for t in range(T, 1, -1)]
        steps = [*steps, diffusion.decode(jnp.asarray(STATES))]
        logits = [jnp.maximum(jax.nn.log_softmax(step.base_dist.logits), -1e3) for step in steps]
        pi = jnp.maximum(diffusion.kernel.stationary().log_prob(STATES), -1e3)
        return [jnp.exp(jnp.einsum("sik,uik->su", each, HOT)) for each in logits], jnp.exp(pi)

    return jax.device_get(every())


def enumerated(prior, strength, couple, mask, value):
    """Marginals, shape (SIZE, K), and log evidence."""
    weight = prior * np.exp(log_r(STATES, strength, couple)) * (STATES == value)[:, mask].all(-1)
    return np.einsum("s,sik->ik", normalised(weight), HOT), np.log(weight.sum())


@cache
def posteriors(name):
    """20 posteriors of each case with their marginals, and the model's own probability of each state."""
    diffusion = chain(PROBS[name])

    def program(strength, couple, mask, value):
        x = dpm.reverse_chain("x", diffusion)
        numpyro.sample("known", dist.Delta(x).mask(mask).to_event(1), obs=value)
        numpyro.factor("r", log_r(x, strength, couple))

    run = smc(program, "x", params={}, num_particles=NUM)

    @jax.jit
    def every(keys, cases):
        p = jax.vmap(lambda case: jax.vmap(lambda key: run(key, *case))(keys))(cases)
        return p, jnp.einsum("crn,crnik->crik", p.weight, jax.nn.one_hot(p.samples, K))

    cases = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *CASES.values())
    p, marginals = every(jax.random.split(jax.random.key(0), 20), cases)
    p.check()
    steps, prior = transitions(diffusion)
    for step in steps:
        prior = prior @ step
    np.testing.assert_allclose(prior.sum(), 1.0)
    return diffusion, prior, *jax.device_get((p, marginals))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["given", "absorbing"])
def test_marginals_and_evidence_of_four_letters_are_those_enumerated(name, case):
    (_, prior, p, got), at = posteriors(name), list(CASES).index(case)
    marginals, log_evidence = enumerated(prior, *CASES[case])
    often = (marginals > 0.01) & (marginals < 0.99)  # of what is rarer, few runs tell how far they are off
    evidence = np.exp(p.log_evidence[at] - log_evidence)
    assert worst((got[at][:, often], evidence), (marginals[often], 1.0)) < 3
    mask, value = CASES[case][-2:]
    assert (p.samples[at] == value)[..., mask].all()
    assert p.samples.dtype == jnp.zeros((), int).dtype
    assert p.ess[at].min(-1).mean() > NUM / 2  # at the worst of its steps


def test_tempered_is_left_with_few_particles_where_the_default_keeps_most():
    diffusion, _, p, _ = posteriors("given")

    def program():
        numpyro.factor("r", log_r(dpm.reverse_chain("x", diffusion), *CASES["coupled"][:2]))

    run = smc(program, "x", params={}, num_particles=NUM, twist=tempered())
    alone = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 20))
    assert alone.ess.min(-1).mean() < NUM / 10
    assert p.ess[1].min(-1).mean() > NUM / 2


def test_the_twist_is_near_the_average_of_r_that_enumeration_gives():
    diffusion = chain(PROBS["given"])
    steps, p = transitions(diffusion)
    strength, couple = CASES["coupled"][:2]
    target = Target(diffusion, lambda x: log_r(x, strength, couple), None)
    average = [np.exp(log_r(STATES, strength, couple))]
    for step in steps[::-1]:
        average.append(step @ average[-1])
    at = jax.jit(jax.vmap(lambda x, t: widened().at(target, x, t)[0], (0, None)))
    for t, step in zip(range(T, 1, -1), steps, strict=False):
        weight = normalised(p * average[t])  # of the posterior of x^t
        off = at(STATES, jnp.asarray(t)) - np.log(average[t])
        assert np.sqrt(weight @ (off - weight @ off) ** 2) < 0.5
        p = p @ step
