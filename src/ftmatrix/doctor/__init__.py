"""What is here, what each method can do with it, and whether it does so rightly: `ftmatrix doctor`."""

from ftmatrix.doctor.findings import Finding, State, findings_table, write_findings
from ftmatrix.doctor.machine import examine
from ftmatrix.doctor.proof import prove

__all__ = ["Finding", "State", "examine", "findings_table", "prove", "write_findings"]
