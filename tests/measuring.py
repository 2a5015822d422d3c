"""Every metric, its formula in NumPy, and how to run it."""

import functools

import keras
import numpy as np

import keras_distill as kd
from keras_distill.reports import groups, measures

CLASSES = 4
BASELINE = 0.25


def batch():
    """Logits of a teacher and a student, and labels."""
    random = np.random.default_rng(0)
    teacher = random.normal(size=(12, CLASSES))
    teacher += 2 * np.eye(CLASSES)[np.arange(12) % CLASSES]
    student = teacher + random.normal(size=(12, CLASSES))
    labels = teacher.argmax(-1)
    # The student alone is right; both make the same mistake; two different.
    labels[[4, 5, 7, 9]] = 3, 0, 0, 0
    return teacher, student, labels


def agreement(teacher, student):
    return (teacher.argmax(-1) == student.argmax(-1)).mean()


def _top_2(teacher, student, labels):
    best = [np.argsort(-z, -1)[:, :2] for z in (teacher, student)]
    shared = [
        len(set(t) & set(s)) / 2
        for t, s in zip(*(b.tolist() for b in best), strict=True)
    ]
    return {"top_2_agreement": np.mean(shared)}


def _calibration(teacher, student, labels):
    right = student.argmax(-1) == labels
    confidence = measures.confidence_of(student)
    bins = measures.reliability(confidence, right)
    return {"calibration_error": measures.calibration_error(bins)}


def _by_class(name, classes, hits, count):
    return {
        f"{name}_{c}": hits[classes == c].mean() if c in classes else np.nan
        for c in range(count)
    }


def _gap(teacher, student, labels):
    t, s = ((z.argmax(-1) == labels).mean() for z in (teacher, student))
    return {"gap_closed": (s - BASELINE) / (t - BASELINE)}


def _outcomes(teacher, student, labels):
    students = student.argmax(-1)[None]
    found = groups.outcomes(teacher.argmax(-1), students, labels)
    return {
        f"outcome_{name}": len(labels) * share
        for name, share in vars(found).items()
    }


def _alignment(teacher, student, labels):
    x, y = (z - z.mean(0) for z in (teacher, student))
    norm = np.linalg.norm
    return {"linear_cka": norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))}


def _class_accuracy(teacher, student, labels):
    hits = student.argmax(-1) == labels
    return _by_class("class_accuracy", labels, hits, student.shape[-1])


def _class_agreement(teacher, student, labels):
    chosen = teacher.argmax(-1)
    hits = student.argmax(-1) == chosen
    return _by_class("class_agreement", chosen, hits, student.shape[-1])


def _making(kind, **arguments):
    return lambda **given: kind(**{**arguments, **given})


# How a metric is made, and its formula of the teacher, the student and labels.
METRICS = {
    "agreement": (
        _making(kd.metrics.Agreement),
        lambda t, s, y: {"agreement": agreement(t, s)},
    ),
    "top_2_agreement": (_making(kd.metrics.Agreement, top_k=2), _top_2),
    "teacher_divergence": (
        _making(kd.metrics.TeacherDivergence),
        lambda t, s, y: {"teacher_divergence": measures.divergence(t, s, 1.0)},
    ),
    "tempered_teacher_divergence": (
        _making(kd.metrics.TeacherDivergence, temperature=2.5),
        lambda t, s, y: {
            "tempered_teacher_divergence": measures.divergence(t, s, 2.5)
        },
    ),
    "gap_closed": (
        _making(kd.metrics.GapClosed, baseline_accuracy=BASELINE),
        _gap,
    ),
    "outcomes": (_making(kd.metrics.Outcomes), _outcomes),
    "outcome_shares": (
        _making(kd.metrics.Outcomes, normalize=True),
        lambda t, s, y: {k: v / len(y) for k, v in _outcomes(t, s, y).items()},
    ),
    "class_agreement": (
        _making(kd.metrics.ClassAgreement, classes=CLASSES),
        _class_agreement,
    ),
    "linear_cka": (_making(kd.metrics.LinearCKA), _alignment),
    "calibration_error": (_making(kd.metrics.CalibrationError), _calibration),
    "negative_log_likelihood": (
        _making(kd.metrics.NegativeLogLikelihood),
        lambda t, s, y: {
            "negative_log_likelihood": measures.negative_log_likelihood(s, y)
        },
    ),
    "brier_score": (
        _making(kd.metrics.BrierScore),
        lambda t, s, y: {"brier_score": measures.brier_score(s, y)},
    ),
    "class_accuracy": (
        _making(kd.metrics.ClassAccuracy, classes=CLASSES),
        _class_accuracy,
    ),
}
FIDELITY = [
    name
    for name, (make, _) in METRICS.items()
    if isinstance(make(), kd.metrics.FidelityMetric)
]


def measure(metric, *batches, jit=True):
    """A metric's result after some batches, as numbers by name."""
    update = metric.update_state
    if jit and keras.backend.backend() == "jax":
        update = _compiled(metric)
    for teacher, student, labels, weights in batches:
        if not isinstance(metric, kd.metrics.FidelityMetric):
            update(labels, student, weights)
        elif metric.uses_labels:
            update(teacher, student, weights, labels=labels)
        else:
            update(teacher, student, weights)
    result = metric.result()
    if not isinstance(result, dict):
        result = {metric.name: result}
    return {name: float(value) for name, value in result.items()}


def flat(result):
    return list(result.values())


@functools.lru_cache(maxsize=1)
def _compiled(metric):
    """Compiled as a whole, which is faster than each operation by itself."""
    import jax

    step = jax.jit(metric.stateless_update_state)

    def update(*args, **kwargs):
        if isinstance(metric, kd.metrics.FidelityMetric):
            metric.build(args[0].shape, args[1].shape)
        values = [v.value for v in metric.variables]
        after = step(values, *args, **kwargs)
        for variable, value in zip(metric.variables, after, strict=True):
            variable.assign(value)

    return update
