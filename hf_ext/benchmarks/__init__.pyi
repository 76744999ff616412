from .engine import Bar as Bar
from .engine import Benchmark as Benchmark
from .engine import Contender as Contender
from .engine import measure as measure
from .results import BenchmarkResult as BenchmarkResult
