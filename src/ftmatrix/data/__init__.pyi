from .base import DataSource as DataSource
from .dataset import INVALID as INVALID
from .dataset import Dataset as Dataset
from .dataset import Message as Message
from .general import general_text as general_text
from .pocket import Pocket as Pocket
from .schemas import DATA_SCHEMAS as DATA_SCHEMAS
