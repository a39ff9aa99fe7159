"""What a person sees of a whole run: ``reports/run.html``, with advice on what to do next.

Reads what the stages and gates have reported; decides nothing. It tells times, so it is not a result that DVC tracks:
a run writes it when it ends, its encoder released or refused.
"""
