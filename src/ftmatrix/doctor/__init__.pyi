from .findings import State as State
from .findings import findings_table as findings_table
from .findings import write_findings as write_findings
from .machine import examine as examine
from .proof import prove as prove
