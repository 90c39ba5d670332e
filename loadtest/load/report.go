package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

//go:embed report.html
var reportPage string

// writeReport writes NAME.html and NAME.json into the folder, and returns their
// paths.
func writeReport(folder string, r *Report) (page, data string, err error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", "", err
	}
	page, data = filepath.Join(folder, r.Scenario.Name+".html"), filepath.Join(folder, r.Scenario.Name+".json")
	encoded, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", "", err
	}
	if err := os.WriteFile(data, append(encoded, '\n'), 0o644); err != nil {
		return "", "", err
	}
	file, err := os.Create(page)
	if err != nil {
		return "", "", err
	}
	if err := writePage(file, r); err != nil {
		_ = file.Close()
		return "", "", err
	}
	return page, data, file.Close()
}

// writePage writes one page that needs nothing else: no script, no network.
func writePage(w io.Writer, r *Report) error {
	page, err := template.New("report").Funcs(template.FuncMap{
		"duration": func(d time.Duration) string { return text(d, true) },
		"percent":  func(part, of int) string { return fmt.Sprintf("%.3f %%", 100*share(part, of)) },
	}).Parse(reportPage)
	if err != nil {
		return err
	}
	return page.Execute(w, struct {
		*Report
		Plots  []plot
		Broken int
	}{r, plots(r), len(broken(r.Verdicts))})
}

func seconds(v float64) string {
	return time.Duration(v * float64(time.Second)).Round(time.Microsecond).String()
}

func plain(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// plots are those that the run has something to show for.
func plots(r *Report) []plot {
	span := r.Scenario.span()
	base := plot{span: span, warm: r.Scenario.Warm}
	if r.Scenario.Disturb != nil {
		base.after = r.Scenario.Disturb.After
	}
	over := func(name string, color int, value func(Second) float64) series {
		s := series{name: name, color: color}
		for i, one := range r.Seconds {
			s.at = append(s.at, min(time.Duration(i)*time.Second+time.Second/2, span))
			s.value = append(s.value, value(one))
		}
		return s
	}
	latency := base
	latency.title, latency.note = "Latency", "From when a request was due, by the second in which it was; the scale grows by factors of ten."
	latency.log, latency.format = true, seconds
	latency.series = []series{
		over("p50", 1, func(s Second) float64 { return s.P50.Seconds() }), over("p90", 2, func(s Second) float64 { return s.P90.Seconds() }),
		over("p99", 3, func(s Second) float64 { return s.P99.Seconds() }), over("max", 4, func(s Second) float64 { return s.Max.Seconds() }),
	}
	throughput := base
	throughput.title, throughput.note = "Throughput", "Requests a second: due, and answered within the second after."
	throughput.format = plain
	throughput.series = []series{
		over("offered", 1, func(s Second) float64 { return float64(s.Offered) }),
		over("answered", 2, func(s Second) float64 { return float64(s.Prompt) }),
	}
	errors := base
	errors.title, errors.note, errors.format = "Errors", "Answers a second that were not expected, and none at all.", plain
	errors.series = []series{over("errors", 4, func(s Second) float64 { return float64(s.Errors) })}
	all := []plot{latency, throughput, errors}
	cloud := func(title, note, name string, samples []sample) {
		if len(samples) == 0 {
			return
		}
		p := base
		p.title, p.note, p.log, p.format = title, note, true, seconds
		s := series{name: name, color: 1, dots: true}
		for _, one := range samples {
			s.at, s.value = append(s.at, min(one.At, span)), append(s.value, one.Took.Seconds())
		}
		p.series = []series{s}
		all = append(all, p)
	}
	cloud("Config propagation", "From the call of the admin API until every node runs the revision.", "one apply", r.Config)
	cloud("Revocation propagation", "From the call of the admin API until a node, another one each time, denies the token.", "one revocation", r.Revocation)
	if limit := r.Scenario.Limit; limit != nil {
		p := base
		p.title, p.format = "Limiter", func(v float64) string { return fmt.Sprintf("%.2f", v) }
		p.note = "Admitted a second, divided by the rate; a burst that was saved may lift one second above 1."
		p.line, p.lineName = 1, "the rate"
		p.series = []series{over("admitted ÷ rate", 1, func(s Second) float64 { return float64(s.Admitted) / limit.Rate })}
		all = append(all, p)
	}
	return all
}
