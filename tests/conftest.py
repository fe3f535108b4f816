"Tests run every notebook at the smallest budget; published outputs come from `LDP_BUDGET=cpu nbdev-test --save`."
import os

os.environ.setdefault('LDP_BUDGET', 'smoke')
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('PYTHONWARNINGS', 'ignore::DeprecationWarning')
