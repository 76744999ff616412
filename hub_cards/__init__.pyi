from .card import MethodCard as MethodCard
from .card import Result as Result
from .card import create_card as create_card
from .methods import METHODS as METHODS
from .methods import Method as Method
from .plots import plot_losses as plot_losses
from .plots import plot_results as plot_results
from .plots import plot_routing as plot_routing
