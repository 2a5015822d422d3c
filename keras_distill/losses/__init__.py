"""Losses between a teacher and a student."""

from keras_distill.losses import catalogue
from keras_distill.losses.activation_boundary import (
    ActivationBoundary as ActivationBoundary,
)
from keras_distill.losses.attention_transfer import (
    AttentionTransfer as AttentionTransfer,
)
from keras_distill.losses.base import DistillationLoss as DistillationLoss
from keras_distill.losses.base import LogitLoss as LogitLoss
from keras_distill.losses.catalogue import Method as Method
from keras_distill.losses.channel_wise import ChannelWise as ChannelWise
from keras_distill.losses.class_attention import (
    ClassAttention as ClassAttention,
)
from keras_distill.losses.contrastive import (
    ContrastiveRepresentation as ContrastiveRepresentation,
)
from keras_distill.losses.corrected_teacher import (
    CorrectedTeacher as CorrectedTeacher,
)
from keras_distill.losses.correlation_congruence import (
    CorrelationCongruence as CorrelationCongruence,
)
from keras_distill.losses.correlation_congruence import (
    KernelCongruence as KernelCongruence,
)
from keras_distill.losses.curriculum_temperature import (
    CurriculumTemperature as CurriculumTemperature,
)
from keras_distill.losses.decoupled import (
    DecoupledSoftTargets as DecoupledSoftTargets,
)
from keras_distill.losses.factor_transfer import (
    FactorTransfer as FactorTransfer,
)
from keras_distill.losses.factor_transfer import paraphraser as paraphraser
from keras_distill.losses.feature_loss import FeatureLoss as FeatureLoss
from keras_distill.losses.flow_of_solution import (
    FlowOfSolution as FlowOfSolution,
)
from keras_distill.losses.hard_targets import HardTargets as HardTargets
from keras_distill.losses.hint import Hint as Hint
from keras_distill.losses.inter_channel import (
    InterChannelCorrelation as InterChannelCorrelation,
)
from keras_distill.losses.logit_correlation import (
    LogitCorrelation as LogitCorrelation,
)
from keras_distill.losses.logit_matching import LogitMatching as LogitMatching
from keras_distill.losses.masked_generation import (
    MaskedGeneration as MaskedGeneration,
)
from keras_distill.losses.mixtures import JensenShannon as JensenShannon
from keras_distill.losses.mixtures import SkewedDivergence as SkewedDivergence
from keras_distill.losses.multi_level import (
    MultiLevelLogits as MultiLevelLogits,
)
from keras_distill.losses.neuron_selectivity import (
    NeuronSelectivity as NeuronSelectivity,
)
from keras_distill.losses.normalized import (
    NormalizedSoftTargets as NormalizedSoftTargets,
)
from keras_distill.losses.one_for_all import OneForAll as OneForAll
from keras_distill.losses.overhaul import FeatureOverhaul as FeatureOverhaul
from keras_distill.losses.overhaul import relu_margin as relu_margin
from keras_distill.losses.pearson import (
    PearsonCorrelation as PearsonCorrelation,
)
from keras_distill.losses.probabilistic import (
    ProbabilisticTransfer as ProbabilisticTransfer,
)
from keras_distill.losses.relational import RelationalAngle as RelationalAngle
from keras_distill.losses.relational import (
    RelationalDistance as RelationalDistance,
)
from keras_distill.losses.review import (
    KnowledgeReview as KnowledgeReview,
)
from keras_distill.losses.semantic_calibration import (
    SemanticCalibration as SemanticCalibration,
)
from keras_distill.losses.similarity import (
    SimilarityPreserving as SimilarityPreserving,
)
from keras_distill.losses.soft_targets import (
    BinarySoftTargets as BinarySoftTargets,
)
from keras_distill.losses.soft_targets import SoftTargets as SoftTargets
from keras_distill.losses.softmax_regression import (
    SoftmaxRegression as SoftmaxRegression,
)
from keras_distill.losses.sorted_probabilities import (
    SortedProbabilities as SortedProbabilities,
)
from keras_distill.losses.sparse import SampledSoftTargets as SampledSoftTargets
from keras_distill.losses.sparse import SampledTargets as SampledTargets
from keras_distill.losses.sparse import SparseSoftTargets as SparseSoftTargets
from keras_distill.losses.sparse import SparseTargets as SparseTargets
from keras_distill.losses.standardized import (
    StandardizedLogits as StandardizedLogits,
)
from keras_distill.losses.teacher_free import TeacherFree as TeacherFree
from keras_distill.losses.total_variation import (
    TotalVariation as TotalVariation,
)
from keras_distill.losses.variational import (
    VariationalInformation as VariationalInformation,
)
from keras_distill.losses.weighted import (
    WeightedSoftTargets as WeightedSoftTargets,
)

__all__ = [
    "ActivationBoundary",
    "AttentionTransfer",
    "BinarySoftTargets",
    "ChannelWise",
    "ClassAttention",
    "ContrastiveRepresentation",
    "CorrectedTeacher",
    "CorrelationCongruence",
    "CurriculumTemperature",
    "DecoupledSoftTargets",
    "DistillationLoss",
    "FactorTransfer",
    "FeatureLoss",
    "FeatureOverhaul",
    "FlowOfSolution",
    "HardTargets",
    "Hint",
    "InterChannelCorrelation",
    "JensenShannon",
    "KernelCongruence",
    "KnowledgeReview",
    "LogitCorrelation",
    "LogitLoss",
    "LogitMatching",
    "MaskedGeneration",
    "Method",
    "MultiLevelLogits",
    "NeuronSelectivity",
    "NormalizedSoftTargets",
    "OneForAll",
    "PearsonCorrelation",
    "ProbabilisticTransfer",
    "RelationalAngle",
    "RelationalDistance",
    "SampledSoftTargets",
    "SampledTargets",
    "SemanticCalibration",
    "SimilarityPreserving",
    "SkewedDivergence",
    "SoftTargets",
    "SoftmaxRegression",
    "SortedProbabilities",
    "SparseSoftTargets",
    "SparseTargets",
    "StandardizedLogits",
    "TeacherFree",
    "TotalVariation",
    "VariationalInformation",
    "WeightedSoftTargets",
    "method",
    "methods",
    "paraphraser",
    "relu_margin",
]


def methods() -> tuple[Method, ...]:
    """All methods of this module, with what they need.

    `reuse_classifier` (SimKD) isn't among them: it makes a student, and is no
    loss.

    Returns:
        A record for each loss: those of logits first, then those of layers,
        then those of relations between examples.

    Example:
        >>> import keras_distill as kd
        >>> [m.name for m in kd.losses.methods() if m.acronym == "DKD"]
        ['DecoupledSoftTargets']
    """
    return catalogue.methods_of(globals()[name] for name in __all__)


def method(name: str) -> Method:
    """The method of a name.

    Args:
        name: Its class, such as `"SoftTargets"`.

    Raises:
        ValueError: If there is none; it says which names are close.

    Example:
        >>> import keras_distill as kd
        >>> kd.losses.method("Hint").paper
        'Romero et al. 2015'
    """
    return catalogue.find_method(name, methods())


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
