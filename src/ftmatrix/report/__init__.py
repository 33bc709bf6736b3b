"""The report of a study: what its runs come to, in words, tables and plots."""

from ftmatrix.report.details import read_details as read_details
from ftmatrix.report.machine import as_json as as_json
from ftmatrix.report.making import Source as Source
from ftmatrix.report.making import make_report as make_report
from ftmatrix.report.markdown import answer_as_markdown as answer_as_markdown
from ftmatrix.report.summary import Summary as Summary
from ftmatrix.report.summary import summarise as summarise
from ftmatrix.report.terminal import print_report as print_report
from ftmatrix.report.writing import write_report as write_report
