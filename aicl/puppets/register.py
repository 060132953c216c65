"""Makes the puppet world known: its benchmark, evaluators and metrics, its data and its networks' trainings."""

from aicl.evaluation.benchmark import register_benchmark
from aicl.evaluation.metric import register_evaluator
from aicl.puppets import metrics  # noqa: F401  (registers them)
from aicl.puppets.benchmark import PuppetBenchmark
from aicl.puppets.measuring import PuppetClassifierEvaluator, PuppetCLIPEvaluator

register_benchmark("puppets", PuppetBenchmark)
register_evaluator("puppets_classifier", PuppetClassifierEvaluator)
register_evaluator("puppets_clip", PuppetCLIPEvaluator)
