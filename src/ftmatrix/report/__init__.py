"""The report of a study: what its runs come to, in words, tables and plots."""

from ftmatrix.report.summary import Summary as Summary
from ftmatrix.report.summary import summarise as summarise
from ftmatrix.report.writing import as_json as as_json
from ftmatrix.report.writing import print_report as print_report
from ftmatrix.report.writing import write_report as write_report
