package main

import (
	"context"
	"fmt"
)

// experiments lists everything that is measured, in the order of the table. The
// targets are those of the project's promises; what they are is written here and
// nowhere else. stored is how many API keys etcd holds when one is added.
func experiments(stored int) []experiment {
	list := []experiment{
		{"pipeline", []target{
			{"Admit..Transform on a token-cache hit: allocations", exactly, 0, count},
		}, measurePipeline},
		{"route-lookup", []target{
			{"route lookup, 10,000 routes", below, 1e-6, seconds},
			{"route lookup, 10,000 routes: allocations", exactly, 0, count},
			{"route lookup, 100,000 routes", below, 3e-6, seconds},
			{"route lookup, 100,000 routes: allocations", exactly, 0, count},
		}, measureLookup},
		{"one-of-100k", []target{
			{"one changed route of 100,000: processor time, message to swap", below, 20e-3, seconds},
		}, measureOneOf100k},
		{"many-of-10k", []target{
			{"100 changed routes of 10,000: processor time, message to swap", below, 15e-3, seconds},
			{"10,000 changed routes of 10,000: processor time, message to swap", below, 150e-3, seconds},
		}, measureManyChanged},
		{"apply", []target{
			{"apply to enforced on 3 nodes, p50", below, 20e-3, seconds},
			{"apply to enforced on 3 nodes, p99", below, 100e-3, seconds},
		}, measureApply},
		{"streams", []target{
			{"1,000 streams: published to the last node, p99", below, 250e-3, seconds},
		}, measureStreams},
		{"revoke", revocationTargets("", 10e-3, 50e-3), measureRevoke},
		// What the stream promises without the bus: a heartbeat each 250 ms proves
		// what a node holds, so nothing revoked may pass for longer.
		{"revoke-no-nats", revocationTargets(", NATS cut", 250e-3, 250e-3), measureRevokeWithoutBus},
	}
	list = append(list, limitExperiments()...)
	list = append(list,
		experiment{"limits-sim", simulatedTargets(), measureSimulated},
		experiment{"api-keys", []target{
			{"1M API keys: memory on a node", below, 200e6, memory},
			{"1M API keys: loaded by a node, over the stream", below, 5, seconds},
		}, measureKeys},
		experiment{"api-key-added", []target{
			{fmt.Sprintf("%d API keys: read from etcd by a control plane", stored), below, 5, seconds},
			{fmt.Sprintf("one API key added to %d in etcd: usable on all of 3 nodes", stored), below, 1, seconds},
		}, func(ctx context.Context) ([]reading, error) { return measureKeyAdded(ctx, stored) }},
		experiment{"revocations", []target{
			{"1M revocations: memory", below, 60e6, memory},
			{"1M revocations: lookup of a token that is not revoked", below, 300e-9, seconds},
		}, measureRevocations},
		experiment{"standalone", []target{
			{"standalone: process start to ready", below, 1, seconds},
			{"standalone: resident after 5 s", below, 100e6, memory},
			{"standalone --demo: process start to ready", below, 1, seconds},
			{"standalone --demo: resident after 5 s", below, 100e6, memory},
		}, measureStandalone},
	)
	return list
}

func revocationTargets(how string, p50, p99 float64) []target {
	name := func(what string) string {
		return fmt.Sprintf("revocation to first denial on another node%s, %s", how, what)
	}
	return []target{
		{name("p50"), below, p50, seconds},
		{name("p99"), below, p99, seconds},
		{fmt.Sprintf("1,000 revocations%s: lost, on any node", how), exactly, 0, count},
	}
}
