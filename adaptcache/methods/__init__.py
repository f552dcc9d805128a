"""What the field published, by name: sites, a policy and a forecast, and what has to be known for them."""

from .rules import fitted_rules, rules_of
from .table import METHODS, Method, method_named, published

__all__ = ["METHODS", "Method", "fitted_rules", "method_named", "published", "rules_of"]
