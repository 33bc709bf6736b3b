"""Claims about a study's outcome, written down before the runs and answered by them."""

from ftmatrix.claims.base import Answer as Answer
from ftmatrix.claims.judge import Finding as Finding
from ftmatrix.claims.judge import judge as judge
from ftmatrix.claims.judge import read_claims as read_claims
from ftmatrix.claims.measures import rank_pairs as rank_pairs
